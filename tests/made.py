"Pictures and clips that the tests of the eye make for themselves."
import io
from fractions import Fraction
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
