"""Sound files and arrays before anything is computed: what they are, what they promise, and one sentence when that is not so.

The samples go on to `omni_lite.audio.mel`, which mixes, resamples and transforms them."""
from collections.abc import Iterator
from pathlib import Path
import io, re
import numpy as np
import torch
from torch import Tensor

def open_sound(
    source:str|Path|bytes, # a sound file, a film, or the bytes of one
) -> tuple[str, int, int|None, Iterator]: # name, rate in Hz, frames where known, blocks (n, C) float32
    "Open a recording without reading it: libsndfile looks at the first bytes, FFmpeg takes what it does not know."
    import soundfile as sf
    raw = isinstance(source, (bytes, bytearray, memoryview))
    name = 'the sound' if raw else Path(source).name
    if not raw and not Path(source).is_file(): raise ValueError(f'there is no file {source}: check the path')
    size = len(source) if raw else Path(source).stat().st_size
    if not size: raise ValueError(f'{name} is an empty file: record it again')
    f = io.BytesIO(source) if raw else open(source, 'rb')
    if f.read(4) == b'OggS':
        f.seek(-min(size, 65307), io.SEEK_END)  # the longest page
        if _cut_page(f.read()): raise _cut(name)
    f.seek(0)
    try: return name, *_sndfile(f, name)
    except (sf.LibsndfileError, RuntimeError, TypeError):
        f.seek(0)
        return name, *_film(f, name)

def _cut(name): return ValueError(f'{name} is cut off: copy or record it again')

def _cut_page(tail):
    "Does the last page of an Ogg file stop before its end?"
    page = tail[tail.rfind(b'OggS'):]
    return len(page) < 27 or len(page) < 27 + page[26] + sum(page[27:27 + page[26]])

def _missing(s):
    "Share of the data that a WAV header promises and the file does not hold; streams promise endless data."
    m = re.search(r'data\s*:\s*(\d+) \(should be (\d+)\)', s.extra_info)
    return 1 - int(m[2]) / int(m[1]) if m and 0 < int(m[1]) < 0x7FFF0000 else 0.

def _sndfile(f, name):
    import soundfile as sf
    s = sf.SoundFile(f)
    frames = s.frames if s.frames < 2**62 else None
    if _missing(s) > .01: raise _cut(name)
    def read():
        seen = 0
        with f, s:
            try:
                while len(x := s.read(1 << 18, dtype='float32', always_2d=True)): seen += len(x); yield x
            except sf.LibsndfileError: raise _cut(name) from None
        if frames and seen < .98 * frames: raise _cut(name)
    return s.samplerate, frames, read()

def _film(f, name):
    import av
    try: c = av.open(f); a = c.streams.audio[0]; rate = a.rate or None; seconds = c.duration and c.duration / 1e6
    except (av.FFmpegError, IndexError): rate = None
    if rate is None: raise ValueError(f'{name} holds no sound that can be read: save it as wav, flac, ogg, mp3 or mp4')
    def read():
        flat = av.AudioResampler('fltp', rate=rate)
        try:
            with f, c:
                for frame in c.decode(a): yield from (p.to_ndarray().T for p in flat.resample(frame))
                yield from (p.to_ndarray().T for p in flat.resample(None))
        except av.FFmpegError: raise ValueError(f'{name} is damaged: copy or record it again') from None
    return rate, int(seconds * rate) if seconds else None, read()

def as_tensor(
    wav:np.ndarray|Tensor|list, # samples (L,) or channels (L, C), (C, L)
    name:str='the sound', # what error messages call it
) -> Tensor: # the same numbers; a kind that has a full scale, and at least one of them
    "Any array of samples as a tensor; integers keep their scale."
    try:
        a = wav if isinstance(wav, Tensor) else np.asarray(wav)
        x = a if isinstance(a, Tensor) else torch.from_numpy(np.array(a, a.dtype.newbyteorder('='), order='C'))
    except (TypeError, ValueError):
        raise ValueError(f'{name} is no array of numbers: give samples, or a path') from None
    if x.ndim not in (1, 2): raise ValueError(f'{name} has {x.ndim} axes: give samples (L,) or channels (L, C)')
    if x.numel() == 0: raise ValueError(f'{name} is empty: record or load at least one sample')
    if x.dtype.is_complex or x.dtype in (torch.bool, torch.int64, torch.uint64):
        raise ValueError(f'{name} is {str(x.dtype)[6:]}, which has no full scale: convert it to int16 or float32')
    return x

def regroup(
    blocks:Iterator[Tensor], # (n,) of any lengths
    n:int, # samples
) -> Iterator[Tensor]: # (n,), the last one shorter
    "Blocks of another length with the same samples."
    parts, have = [], 0
    for x in blocks:
        parts.append(x); have += len(x)
        if have >= n:
            *whole, rest = torch.cat(parts).split(n)
            yield from whole
            parts, have = [rest], len(rest)
    if have: yield torch.cat(parts)
