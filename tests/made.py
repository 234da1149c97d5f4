"Pictures, clips and voices that the tests make for themselves, and a reader of pages."
import io
from fractions import Fraction
from html.parser import HTMLParser
import av
import numpy as np
from PIL import Image

def noise(w, h, seed=0, mode='RGB'):
    a = np.random.default_rng(seed).integers(0, 256, (h, w, len(mode)), dtype=np.uint8)
    return Image.fromarray(a.squeeze(), mode if len(mode) > 1 else 'L')

def as_bytes(im, fmt, **kw):
    out = io.BytesIO(); im.save(out, fmt, **kw)
    return out.getvalue()

def write_clip(path, shades, rate=4, size=(64, 48), turn=0, tone=0., pts=None, corner=0, layout='mono', **options):
    "A clip whose i-th frame is one shade of grey, with a white corner if asked; `pts` in ms for a variable rate."
    with av.open(str(path), 'w') as f:
        if shades:
            v = f.add_stream('mpeg4' if str(path).endswith('avi') else 'libx264', rate=rate)
            v.width, v.height, v.pix_fmt, v.options = *size, 'yuv420p', {k: str(o) for k, o in options.items()}
            if turn: v.set_display_rotation(turn)
            if pts: v.codec_context.time_base, v.options = Fraction(1, 1000), {'bf': '0'}
        if tone: a = f.add_stream('aac', rate=8000, layout=layout)
        for i, s in enumerate(shades):
            im = Image.new('RGB', size, (s,)*3)
            if corner: im.paste((255, 255, 255), (0, 0, corner, corner))
            fr = av.VideoFrame.from_image(im)
            if pts: fr.pts, fr.time_base = pts[i], Fraction(1, 1000)
            f.mux(v.encode(fr))
        if shades: f.mux(v.encode())
        if tone:
            wave = np.full((2 if layout == 'stereo' else 1, int(8000*tone)), .25, np.float32)
            fr = av.AudioFrame.from_ndarray(wave, 'fltp', layout)
            fr.sample_rate = 8000; fifo = av.AudioFifo(); fifo.write(fr)
            while c := fifo.read(1024, partial=True): f.mux(a.encode(c))
            f.mux(a.encode())
    return path

def beeper(text, voice='heart', speed=1., seed=0):
    "A stand-in voice: each word is a beep of 0.2 s whose pitch depends on its length."
    from omni_lite.data.speech import Utterance
    words = text.split()
    wav = .2*np.concatenate([np.sin(2*np.pi*100*(1 + len(w))*np.arange(4800)/24000) for w in words])
    wav += 1e-4*np.random.default_rng(seed).standard_normal(len(wav))
    marks = [(w, .2*i, .2*i + .2) for i, w in enumerate(words)]
    return Utterance(text, wav.astype(np.float32), voice, marks, [('ɑ', a, b) for _, a, b in marks], np.full(len(wav)//300, 150., np.float32))

def beeps(folder, texts=('the red cat is on the left side', 'two dogs and a big ball are here')):
    "A store in which these texts are beeped, for training and held out."
    from omni_lite.data.speech import build_speech
    lines = [dict(text=t, voice='heart', kind='answer', split=s) for s in ('train', 'test') for t in texts]
    return build_speech(lines, folder, 0, False, speaker=beeper)

def tiny():
    "The smallest model with random weights, and its processor with a text tokenizer of the small world."
    import torch
    from dataclasses import replace
    from omni_lite.config import preset
    from omni_lite.data.world import World
    from omni_lite.omni.model import OmniForCausalLM
    from omni_lite.omni.processor import OmniProcessor
    from omni_lite.text import train_tokenizer
    torch.manual_seed(0); torch.set_num_threads(1)
    tok = train_tokenizer(l for l, _ in zip(World('small').corpus(0), range(500)))
    cfg = preset('tiny'); cfg = replace(cfg, llm=replace(cfg.llm, vocab_size=len(tok)))
    return OmniForCausalLM(cfg), OmniProcessor(tok, cfg)

class Page(HTMLParser):
    "Tags and text of a page; one that loads anything from elsewhere is refused."
    def __init__(self, text):
        super().__init__(); self.tags, self.data = [], ''
        self.feed(text)
        for tag, a in self.tags:
            assert tag != 'script' and 'href' not in a and a.get('src', 'data:').startswith('data:'), (tag, a)
            if tag in ('audio', 'img'): assert a.get('aria-label') or a.get('alt'), (tag, a)
    def handle_starttag(self, tag, attrs): self.tags.append((tag, dict(attrs)))
    def handle_data(self, data): self.data += data
    def count(self, tag): return sum(t == tag for t, _ in self.tags)
