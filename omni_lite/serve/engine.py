"""The engine behind the pages: one object that answers, one answer at a time, and a door that user files pass first.

Nothing heavy is imported here: torch and the model come in when the first answer is asked for, PyAV and Pillow when the
first file arrives. A page, a server or a test needs only something with `reply` (see `Engine`)."""
import hashlib, io, mimetypes, re, tempfile, threading, time, wave, weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from omni_lite.paths import shipped

__all__ = ['Engine', 'NanoEngine', 'load_engine', 'OneAtATime', 'Sense', 'Checked', 'model_parts', 'check_message',
           'recent', 'limits_text', 'wav_bytes', 'MAX_BYTES', 'MAX_SECONDS', 'MAX_PIXELS', 'EAR_RATE']

MAX_BYTES   = 50*2**20     # per file
MAX_SECONDS = 30.          # of sound or clip; the rest is cut, with a notice
MAX_PIXELS  = 40_000_000   # per picture
EAR_RATE    = 16_000       # Hz, what the ear listens at
QUIET       = 0.003        # loudest 50 ms below this RMS (-50 dBFS) counts as silence
MIN_SECONDS = 0.1          # shorter recordings are refused
MAX_SIDE    = 1024         # pixels; larger pictures are shrunk before they are kept

# ---- the engine

@runtime_checkable
class Engine(Protocol):
    "What a page needs from a model: an answer as a stream of events."
    sample_rate:int # Hz of the sound in the events

    def reply(self,
        messages:list[dict],      # [{'role', 'content': [{'type': 'text'|'image'|'audio'|'video', ...}]}]
        speak:bool=True,          # answer aloud as well
        seed:int=0,               # same seed, same answer
        max_seconds:float=10.,    # upper limit of speech, in seconds
    ) -> Iterator[Any]: # events: kind 'text' | 'frame' | 'sound' | 'segment' | 'done'; close it to stop
        "Answer the last message."
        ...

def _fingerprint(messages):
    "A name for a conversation: the same words, pictures and sounds give the same one."
    h = hashlib.blake2b(digest_size=16)
    def put(x):
        if isinstance(x, dict):
            for k, v in x.items(): put(k); put(v)
        elif isinstance(x, (list, tuple)):
            for v in x: put(v)
        elif isinstance(x, np.ndarray): h.update(x.tobytes())
        elif hasattr(x, 'tobytes'): h.update(repr(getattr(x, 'size', '')).encode() + x.tobytes()) # a picture
        else: h.update(repr(x.strip() if isinstance(x, str) else x).encode())
        h.update(b'|')
    for m in messages:
        content = m['content']
        if isinstance(content, list) and all(p.get('type') == 'text' for p in content):
            content = ' '.join(p['text'].strip() for p in content)
        put(m['role']); put(content)
    return h.hexdigest()

class NanoEngine:
    "The checkpoint in `folder`, read when the first answer is asked for."
    sample_rate = 24_000

    def __init__(self,
        folder:str|Path|None=None, # checkpoint folder; None: the one that ships
        memory:int=8, # conversations kept in the model's memory: their next turn costs only what is new
    ):
        self.folder, self.memory, self.talks = Path(folder) if folder else shipped('nano'), memory, OrderedDict()
        self._lock, self.model, self.processor = threading.Lock(), None, None

    def load(self) -> 'NanoEngine': # itself, ready to answer
        "Read model and processor, once."
        with self._lock:
            if self.model is not None: return self
            if not (self.folder/'config.json').exists():
                raise ValueError(f'There is no checkpoint in {self.folder}: run `make train`, or name a folder in '
                                 'OMNI_LITE_MODEL.')
            from omni_lite.omni.model import OmniForCausalLM
            from omni_lite.omni.processor import OmniProcessor
            self.processor = OmniProcessor.from_pretrained(self.folder)
            self.model = OmniForCausalLM.from_pretrained(self.folder).eval()
        return self

    def reply(self,
        messages:list[dict],   # the conversation, the newest message last
        speak:bool=True,       # answer aloud as well
        seed:int=0,            # same seed, same answer
        max_seconds:float=10., # upper limit of speech, in seconds
    ) -> Iterator[Any]: # events, see `Engine`
        "Answer the last message."
        self.load()
        import torch
        talk, said, sound = self.resume(messages, speak), '', True
        events = talk.reply(speak, seed=seed, max_seconds=max_seconds)
        try:
            while True:
                with torch.no_grad(): # set anew each step: a server may resume this in another thread
                    ev = next(events, None)
                if ev is None: return
                said += ev.text if ev.kind == 'text' else ''
                yield ev
        except Exception:
            sound = False # whatever went wrong, this memory is not to be trusted
            raise
        finally:
            events.close()
            if sound: self.remember(messages + [{'role':'assistant', 'content':said}], talk)

    def resume(self,
        messages:list[dict], # the conversation, the newest message last
        speak:bool,          # will the answer be spoken?
    ) -> 'Conversation': # ready to answer
        "The conversation in memory with the newest message read on top, or a new one with all of them read."
        from omni_lite.omni.generate import Conversation
        talk = self.talks.pop(_fingerprint(messages[:-1]), None)
        try:
            if talk is not None: return talk.add(messages[-1:], speak=speak)
        except ValueError: pass # the memory is full: `recent` messages may still fit into a new one
        return Conversation(self.model, self.processor).add(messages, speak=speak)

    def remember(self,
        messages:list[dict], # the conversation with its answer
        talk:'Conversation', # that holds it
    ) -> None:
        "Keep a conversation for its next turn; the oldest goes."
        self.talks[_fingerprint(messages)] = talk
        while len(self.talks) > self.memory: self.talks.popitem(last=False)

    def count_tokens(self,
        messages:list[dict], # the conversation
    ) -> dict[str, int]: # 'text', 'picture' and 'sound' -> tokens in the newest message
        "What a message costs; empty before the model is read."
        if self.model is None: return {}
        row = self.processor.apply_chat_template(messages[-1:])
        seen, heard = int(row.see.sum()), int((row.ids == self.processor.cfg.ids.hear[1]).sum())
        return dict(text=len(row) - seen - heard, picture=seen, sound=heard)

def load_engine(
    folder:str|Path|None=None, # checkpoint folder; None: the one that ships
) -> Engine: # not read yet; `load()` reads it early
    "The engine for a checkpoint folder."
    return NanoEngine(folder)

# ---- one generation at a time

class _Turn:
    "One answer in the making: takes its turn at the first `next`, gives it back when it ends, is closed or dropped."
    def __init__(self, door, start, alive):
        self.door, self.start, self.alive = door, start, alive
        self.events, self.closed, self.touched, self.mutex = None, False, time.monotonic(), threading.RLock()

    def __iter__(self): return self

    def __next__(self):
        if not self.closed and self.events is None: self.door._enter(self)
        with self.mutex:
            if self.closed or not self.alive():
                self._end()
                raise StopIteration
            try:
                if self.events is None: self.events = iter(self.start())
                ev = next(self.events)
            except BaseException:
                self._end()
                raise
            self.touched = time.monotonic()
            return ev

    def _end(self):
        if self.closed: return
        self.closed, events = True, self.events
        try:
            if hasattr(events, 'close'): events.close()
        finally: self.door._leave(self)

    def close(self):
        with self.mutex: self._end()

    def __del__(self): self.close()

class OneAtATime:
    """An engine that makes one answer at a time; the others wait for their turn.

    Whoever asks may vanish (a closed tab). Closing or dropping the iterator frees the turn at once; an iterator that
    somebody still holds but nobody has advanced for `patience` seconds is closed by the next one in line."""
    def __init__(self,
        engine:Engine,       # the engine that answers
        patience:float=20.,  # seconds an untouched answer may block those who wait
    ):
        self.engine, self.patience = engine, patience
        self._cond, self._ref = threading.Condition(), None # weak: a dropped answer must die

    @property
    def sample_rate(self) -> int: # Hz of the sound in the events
        "Rate of the engine's sound."
        return self.engine.sample_rate

    @property
    def _now(self): return self._ref() if self._ref else None

    @property
    def busy(self) -> bool: # True while somebody's answer is being made
        "Whether an answer is in the making."
        return self._now is not None

    def reply(self,
        messages:list[dict],                      # the conversation, the newest message last
        speak:bool=True,                          # answer aloud as well
        seed:int=0,                               # same seed, same answer
        max_seconds:float=10.,                    # upper limit of speech, in seconds
        alive:Callable[[],bool]=lambda: True,     # False: the asker is gone, stop
    ) -> Iterator[Any]: # events, see `Engine`
        "Answer the last message when the answers before it are done."
        return _Turn(self, lambda: self.engine.reply(messages, speak=speak, seed=seed, max_seconds=max_seconds), alive)

    def _enter(self, turn):
        with self._cond:
            while self._now is not None and turn.alive() and not turn.closed:
                self._free_if_stale()
                if self._now is not None: self._cond.wait(0.1)
            if turn.alive() and not turn.closed: self._ref, turn.touched = weakref.ref(turn), time.monotonic()

    def _free_if_stale(self):
        old = self._now
        if old is None: return
        if time.monotonic() - old.touched > self.patience and old.mutex.acquire(blocking=False):
            try: old._end()
            finally: old.mutex.release()

    def _leave(self, turn):
        with self._cond:
            if self._now is turn: self._ref = None
            self._cond.notify_all()

# ---- the door

@dataclass
class Sense:
    "What one part of a message turned into, for the panel that shows what the model was given."
    kind:str             # 'text' | 'image' | 'audio' | 'video'
    name:str             # file name, or the text
    detail:str           # size in words: '2.3 s', '640 x 480', '4 frames'
    media:Any=None       # audio: (N,) float32 at 16 kHz; image: PIL; video: list of PIL, 1 a second

@dataclass
class Checked:
    "A message that passed the door."
    parts:list[dict]                                         # model parts, media decoded; a clip's sound is its own
    notices:list[str] = field(default_factory=list)          # one sentence each: what was cut
    senses:list[Sense] = field(default_factory=list)         # one per file and text, in order

def _file_part(f):
    if isinstance(f, (str, Path)): path, mime = str(f), None
    else:
        f = f.get('file') or f
        path, mime = f.get('path'), f.get('mime_type')
    if not path: raise ValueError('A file did not arrive; please send it again.')
    kind = (mime or mimetypes.guess_type(path)[0] or '').split('/')[0]
    if kind not in ('image', 'audio', 'video'):
        raise ValueError(f'I can take pictures, sounds and clips; {Path(path).name} is none of these.')
    return {'type':kind, kind:path}

def model_parts(
    content:str|dict|list, # a text, a textbox value {'text', 'files'}, or the parts of a Gradio history message
) -> list[dict]: # [{'type':'text','text':...}, {'type':'image','image':path}, ...]; files come before text
    "Gradio's parts (`file` with a mime type) as the model's parts (`image`, `audio`, `video`)."
    if isinstance(content, str): return [{'type':'text', 'text':content.strip()}] if content.strip() else []
    if isinstance(content, dict):
        if 'files' in content or ('text' in content and 'type' not in content):
            files = [_file_part(f) for f in content.get('files') or []]
            return files + model_parts(content.get('text') or '')
        return model_parts(content.get('text') or '') if content.get('type') == 'text' else [_file_part(content)]
    if isinstance(content, (list, tuple)): return [p for c in content for p in model_parts(c)]
    raise ValueError(f'A message is a text, a dict or a list of parts, not {type(content).__name__}.')

def _sized(path):
    p = Path(path)
    if not p.is_file(): raise ValueError(f'{p.name} did not arrive; please send it again.')
    if (size := p.stat().st_size) > MAX_BYTES:
        raise ValueError(f'{p.name} is {size/2**20:.0f} MB; please send at most {MAX_BYTES//2**20} MB.')
    if size == 0: raise ValueError(f'{p.name} is empty; please send it again.')
    return p

def _too_many(p, what): return f'{p.name} has {what}; please send at most {MAX_PIXELS//10**6} megapixels.'

def _check_image(path):
    from PIL import Image, ImageOps
    p = _sized(path)
    try: im = Image.open(p, formats=['PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'MPO'])
    except Image.DecompressionBombError: raise ValueError(_too_many(p, 'too many pixels')) from None
    except Exception: raise ValueError(f'I cannot read {p.name} as a picture; please send a PNG or JPEG.') from None
    w, h = im.size
    if w*h > MAX_PIXELS: raise ValueError(_too_many(p, f'{w*h/1e6:.1f} megapixels'))
    try:
        im = ImageOps.exif_transpose(im)
        im = im.convert('RGBA' if 'A' in im.getbands() or 'transparency' in im.info else 'RGB')
    except Exception: raise ValueError(f'{p.name} is broken; I can read its start but not the picture.') from None
    if im.mode == 'RGBA': im = Image.alpha_composite(Image.new('RGBA', im.size, 'white'), im).convert('RGB')
    im.thumbnail((MAX_SIDE, MAX_SIDE))
    return {'type':'image', 'image':im}, Sense('image', p.name, f'{w} x {h} pixels', im), []

def _read_sound(path):
    "First seconds of a file's sound: ((N,) float32 at 16 kHz, whether it went on, whether it broke off)."
    import av
    out, n, most, broke = [], 0, int(MAX_SECONDS*EAR_RATE), False
    with av.open(str(path)) as c:
        if not c.streams.audio: return None, False, False
        c.streams.audio[0].thread_type = 'AUTO'
        to16k = av.AudioResampler(format='flt', layout='mono', rate=EAR_RATE)
        def frames():
            yield from c.decode(audio=0)
            yield None # flush
        try:
            for f in frames():
                for g in to16k.resample(f):
                    x = g.to_ndarray().reshape(-1)
                    out.append(x)
                    n += len(x)
                if n > most: break
        except av.FFmpegError: broke = True
    x = np.concatenate(out) if out else np.zeros(0, np.float32)
    return np.nan_to_num(x[:most], nan=0., posinf=0., neginf=0.).clip(-1, 1).astype(np.float32), n > most, broke

def _loudest(x, window=int(0.05*EAR_RATE)):
    "RMS of the loudest 50 ms."
    if len(x) < window: return float(np.sqrt(np.mean(x**2))) if len(x) else 0.
    return float(np.sqrt((x[:len(x)//window*window].reshape(-1, window)**2).mean(1).max()))

def _check_audio(path):
    p, unreadable = _sized(path), 'I cannot read {} as sound; please send a WAV, MP3, OGG or FLAC.'
    try: x, more, broke = _read_sound(p)
    except Exception: raise ValueError(unreadable.format(p.name)) from None
    if x is None or (broke and len(x) < MIN_SECONDS*EAR_RATE): raise ValueError(unreadable.format(p.name))
    if len(x) < MIN_SECONDS*EAR_RATE:
        raise ValueError('The recording is shorter than a tenth of a second; please speak and then stop it.')
    if _loudest(x) < QUIET: raise ValueError('I heard only silence. Please speak closer to the microphone.')
    s = f'{MAX_SECONDS:.0f} s'
    notices = [f'{p.name} is longer than {s}; I listened to its first {s}.'] if more else []
    if broke: notices.append(f'{p.name} breaks off after {len(x)/EAR_RATE:.1f} s; I listened up to there.')
    return {'type':'audio', 'audio':(x, EAR_RATE)}, Sense('audio', p.name, f'{len(x)/EAR_RATE:.1f} s', x), notices

def _read_clip(path):
    "One picture a second of a clip's start: ([PIL], whether it went on, whether it has sound, whether it broke off)."
    import av
    ims, more, broke = [], False, False
    with av.open(str(path)) as c:
        sound = bool(c.streams.audio)
        if not c.streams.video: return [], False, sound, False
        s = c.streams.video[0]
        s.thread_type = 'AUTO'
        if s.codec_context.width*s.codec_context.height > MAX_PIXELS:
            raise ValueError(_too_many(Path(path), 'frames of too many pixels'))
        t0 = None
        try:
            for f in c.decode(s):
                t = float(f.time or 0.)
                t0 = t if t0 is None else t0
                if t - t0 > MAX_SECONDS:
                    more = True
                    break
                if t - t0 >= len(ims):
                    im = f.to_image()
                    im.thumbnail((160, 160))
                    ims.append(im)
        except av.FFmpegError: broke = True
    return ims, more, sound, broke

def _cut_clip(path):
    "A copy of the first seconds of a clip, packets untouched."
    import av
    to = Path(tempfile.mkdtemp(prefix='omni_lite_'))/('cut_' + re.sub(r'[^\w.]', '_', Path(path).stem)[:40] + '.mkv')
    with av.open(str(path)) as a, av.open(str(to), 'w', format='matroska') as b:
        ins = [s for s in (a.streams.video[:1] + a.streams.audio[:1])]
        outs = {s.index: b.add_stream_from_template(s) for s in ins}
        for pk in a.demux(ins):
            if pk.dts is None: continue
            if float(pk.dts*pk.time_base) > MAX_SECONDS + 1: break
            pk.stream = outs[pk.stream.index]
            b.mux(pk)
    return to

def _check_video(path):
    p, unreadable = _sized(path), 'I cannot read {} as a clip; please send an MP4 or WebM.'
    try: ims, more, sound, broke = _read_clip(p)
    except Exception as e: # PyAV's own errors are ValueErrors too
        raise ValueError(str(e) if 'too many pixels' in str(e) else unreadable.format(p.name)) from None
    if not ims and sound and not broke:
        raise ValueError(f'{p.name} has sound but no pictures; please send it as a sound file.')
    if not ims: raise ValueError(f'{p.name} has no picture in it that I can read; please send an MP4 or WebM.')
    path, notices = p, []
    if more:
        path = _cut_clip(p)
        notices.append(f'{p.name} is longer than {MAX_SECONDS:.0f} s; I looked at its first {MAX_SECONDS:.0f} s.')
    if broke: notices.append(f'{p.name} breaks off after about {len(ims)} s; I looked up to there.')
    detail, parts = f'{len(ims)} frame{"s"*(len(ims) > 1)}, 1 a second', [{'type':'video', 'video':str(path)}]
    try: x = _read_sound(path)[0] if sound else None
    except Exception: x = None # frames can be read, sound cannot: the frames are enough
    if x is not None and len(x) >= MIN_SECONDS*EAR_RATE and _loudest(x) >= QUIET:
        parts.append({'type':'audio', 'audio':(x, EAR_RATE)})
        detail += f', with {len(x)/EAR_RATE:.1f} s of sound'
    return parts, Sense('video', p.name, detail, ims), notices

def check_message(
    content:str|dict|list, # what came in, see `model_parts`
    max_files:int=8,       # files in one message
) -> Checked: # parts the model can take, notices, and what the panel shows
    "Let a message in, or say in one sentence (ValueError) why not."
    parts = model_parts(content)
    if not parts: raise ValueError('The message is empty; please type, speak or add a file.')
    if sum(p['type'] != 'text' for p in parts) > max_files:
        raise ValueError(f'Please send at most {max_files} files in one message.')
    out, look = Checked([]), dict(image=_check_image, audio=_check_audio, video=_check_video)
    for p in parts:
        if p['type'] == 'text':
            text = p['text']
            if len(text) > 2000: raise ValueError(f'The text has {len(text)} letters; please send at most 2000.')
            part, sense, notices = p, Sense('text', text, f'{len(text.split())} words'), []
        else: part, sense, notices = look[p['type']](p[p['type']])
        out.parts += part if isinstance(part, list) else [part]
        out.senses.append(sense)
        out.notices += notices
    return out

def recent(
    messages:list[dict], # the conversation so far
    turns:int=4,         # questions to keep, the newest among them
) -> list[dict]: # system message, then the newest turns, beginning with a question
    "The end of a conversation that a small context can hold."
    system, rest = [m for m in messages if m['role'] == 'system'], [m for m in messages if m['role'] != 'system']
    asked = [i for i, m in enumerate(rest) if m['role'] == 'user']
    return system + (rest[asked[-turns:][0]:] if asked else rest)

def limits_text(
    engine:Any, # an engine; one with a `folder` has a model card
) -> str: # markdown, never empty
    "What the model cannot do, from `limits.md` in its folder or the part of its README that says so."
    folder = getattr(engine, 'folder', None) or getattr(getattr(engine, 'engine', None), 'folder', None)
    if folder and (p := Path(folder)/'limits.md').is_file(): return p.read_text(encoding='utf-8')
    if folder and (p := Path(folder)/'README.md').is_file():
        card = p.read_text(encoding='utf-8')
        m = re.search(r'^#+\s*[^\n]*(?:limit|cannot)[^\n]*\n(.*?)(?=^#|\Z)', card, re.I|re.M|re.S)
        if m and m[1].strip(): return m[1].strip()
    return ('This is a very small model. It knows a small world of things, colours, counts, places and sounds in '
            'simple English, and says wrong things about all else. It listens to at most 30 s, looks at one picture '
            'a second of a clip, and remembers the last few questions only.')

def wav_bytes(
    sound:np.ndarray,  # (N,) float32 in [-1, 1]
    sample_rate:int,   # Hz
) -> bytes: # a 16-bit mono WAV file
    "Sound as the bytes of a WAV file."
    out = io.BytesIO()
    with wave.open(out, 'wb') as w:
        w.setnchannels(1); w.setsampwidth(2); w.setframerate(sample_rate)
        w.writeframes((np.clip(np.nan_to_num(sound), -1, 1)*32767).astype('<i2').tobytes())
    return out.getvalue()
