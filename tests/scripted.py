"""An engine that follows a script, so that pages and servers can be tested without a trained model.

It says what kinds of part it was given (never an answer to them) and hums a sine for it."""
import contextlib, os, sys, time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

@dataclass
class Event:
    kind:str
    text:str = ''
    codes:object = None
    sound:object = None
    timings:dict|None = None

class ScriptedEngine:
    sample_rate = 24_000

    def __init__(self,
        pause:float=0.01,      # seconds between events
        num_chunks:int=8,      # sound chunks in an answer, 0.1 to 0.4 s each
        fail_on:str='',        # raise when the last message has this word
    ):
        self.pause, self.num_chunks, self.fail_on = pause, num_chunks, fail_on
        self.asked, self.running, self.most_running, self.closed = [], 0, 0, 0

    def reply(self, messages, speak=True, seed=0, max_seconds=10.) -> Iterator[Event]:
        self.asked.append(messages)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try: yield from self._reply(messages, speak, seed)
        except GeneratorExit:
            self.closed += 1
            raise
        finally: self.running -= 1

    def _reply(self, messages, speak, seed):
        t0, parts = time.perf_counter(), messages[-1]['content']
        said = ' '.join(p['text'] for p in parts if p['type'] == 'text')
        if self.fail_on and self.fail_on in said: raise RuntimeError('the script says fail')
        turns = sum(m['role'] == 'user' for m in messages)
        words = f"Turn {turns}: {' and '.join(p['type'] for p in parts)}. You wrote: {said}".split(' ')
        for i, w in enumerate(words):
            time.sleep(self.pause)
            yield Event('text', text=w if i == 0 else ' ' + w)
        first_text = time.perf_counter() - t0
        yield Event('segment')
        rng, phase, n = np.random.default_rng(seed), 0., 0
        for i in range(self.num_chunks if speak else 0):
            seconds = (0.1, 0.2, 0.4, 0.15)[i % 4]
            for _ in range(max(1, round(seconds*12.5))): yield Event('frame', codes=rng.integers(0, 64, 8))
            time.sleep(self.pause)
            x = 0.3*np.sin(phase + 2*np.pi*330*np.arange(int(seconds*self.sample_rate))/self.sample_rate)
            phase += 2*np.pi*330*seconds
            n += len(x)
            yield Event('sound', sound=x.astype(np.float32))
        took = time.perf_counter() - t0
        timings = dict(first_text_s=self.pause, first_sound_s=first_text + self.pause if speak else None,
                       rtf=took/(n/self.sample_rate) if n else None)
        yield Event('done', text=' '.join(words), timings=timings)

@contextlib.contextmanager
def served(engine, **kw):
    "The chat page over an engine on a free port of this machine: (address, page)."
    from apps.chat import build, free_port, look
    page = build(engine, **kw)
    port = free_port(7900 + os.getpid() % 1000)
    try:
        page.launch(server_name='127.0.0.1', server_port=port, prevent_thread_lock=True, quiet=True, share=False,
                    max_file_size='200mb', **look())
        yield f'http://127.0.0.1:{port}', page
    finally: page.close()

def write_sound(path, seconds=1.0, rate=48_000, level=0.3):
    "A rising tone as a WAV file (level 0: silence)."
    from omni_lite.serve.engine import wav_bytes
    t = np.arange(int(seconds*rate))/rate
    Path(path).write_bytes(wav_bytes(level*np.sin(2*np.pi*(200*t + 100*t*t)), rate))
    return str(path)

def write_picture(path, size=(320, 240)):
    "A red disc on green."
    from PIL import Image, ImageDraw
    im = Image.new('RGB', size, (40, 140, 90))
    w, h = size
    ImageDraw.Draw(im).ellipse((w*.3, h*.2, w*.7, h*.8), fill=(220, 50, 40))
    im.save(path)
    return str(path)

def write_movie(path, seconds=3, rate=8, size=(320, 240), frames=True, sound=True):
    "A bar that moves to the right, with a tone; without frames, only the tone."
    import av
    with av.open(str(path), 'w') as c:
        if frames:
            v = c.add_stream('libx264', rate=rate, options=dict(preset='ultrafast'))
            v.width, v.height, v.pix_fmt = *size, 'yuv420p'
        if sound: a = c.add_stream('aac', rate=16_000, layout='mono')
        n = int(seconds*rate) if frames else 0
        for i in range(n):
            x = np.full((size[1], size[0], 3), (30, 60, 120), np.uint8)
            at = int(i/n*(size[0] - 40))
            x[80:160, at:at + 40] = (240, 200, 40)
            for p in v.encode(av.VideoFrame.from_ndarray(x, format='rgb24')): c.mux(p)
        if frames:
            for p in v.encode(): c.mux(p)
        if sound:
            t = np.arange(int(seconds*16_000))/16_000
            x = (0.3*np.sin(2*np.pi*440*t)).astype(np.float32)[None]
            f = av.AudioFrame.from_ndarray(x, format='fltp', layout='mono')
            f.sample_rate = 16_000
            for p in [*a.encode(f), *a.encode()]: c.mux(p)
    return str(path)
