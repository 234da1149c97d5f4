"The image door under odd and broken files: what opens is right, what does not says why in one sentence, in bounded memory."
import struct, subprocess, sys, zlib
from functools import lru_cache
import numpy as np
import pytest
import torch
from PIL import Image
from omni_lite.vision.image import (MAX_DECODE, draw_cut, load_image, normalise, patchify, smart_size, to_rgb, unpatchify)

from made import as_bytes, noise

torch.set_num_threads(1)

def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

def png(w, h, rows, depth=8, colour=2, *extra):
    "A PNG written by hand: sixteen bits a channel, or a header that lies."
    head = chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, depth, colour, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + head + b''.join(extra) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')

def one_sentence(e, kind='picture'):
    text = str(e.value)
    assert kind in text and '\n' not in text and 20 < len(text) < 300 and ': ' in text, text

@pytest.mark.parametrize('colour,channels', [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits(colour, channels):
    a = np.full((20, 30, channels), 32768, '>u2')
    if channels in (2, 4): a[..., -1] = 65535  # opaque
    rows = b''.join(b'\0' + r.tobytes() for r in a)
    assert set(np.asarray(load_image(png(30, 20, rows, 16, colour))).flat) == {128}

def test_deep_greys_are_scaled_not_clipped():
    deep = Image.fromarray(np.array([[0, 2**15, 2**16 - 1]], np.int32)); deeper = Image.fromarray(np.array([[0, 2**20]], np.int32))
    assert np.asarray(to_rgb(deep))[0, :, 0].tolist() == [0, 128, 255]
    assert np.asarray(to_rgb(deeper))[0, :, 0].tolist() == [0, 255]
    holes = Image.fromarray(np.array([[np.nan, np.inf, -np.inf, .5]], np.float32))
    assert to_rgb(holes).mode == 'RGB'

@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'La', 'P', 'PA', 'RGB', 'RGBA', 'RGBa', 'RGBX', 'CMYK', 'YCbCr', 'HSV', 'LAB',
                                  'I', 'F', 'I;16'])
def test_every_mode_becomes_rgb(mode):
    im = to_rgb(Image.new(mode, (20, 30)))
    assert im.mode == 'RGB' and im.size == (20, 30)
    if mode in ('La', 'RGBa', 'LA', 'RGBA'): assert im.getpixel((0, 0)) == (255, 255, 255)  # nothing there: white

@pytest.mark.parametrize('fmt', ['JPEG', 'TIFF'])
def test_inks(fmt):
    red = load_image(as_bytes(Image.new('CMYK', (40, 40), (0, 255, 255, 0)), fmt)).getpixel((20, 20))
    assert np.abs(np.array(red) - (255, 0, 0)).max() <= 2

@pytest.mark.parametrize('fmt', ['PNG', 'JPEG', 'GIF', 'WEBP', 'TIFF', 'BMP', 'PPM', 'TGA', 'ICO', 'AVIF', 'JPEG2000', 'QOI'])
def test_formats(fmt, tmp_path):
    if fmt == 'AVIF':
        from PIL import features
        if not features.check('avif'): pytest.skip('this Pillow has no AVIF')
    im = Image.new('RGB', (64, 64), (200, 60, 20))
    p = tmp_path/'wrong.txt'; p.write_bytes(as_bytes(im, fmt))  # the name says nothing
    for src in (p, str(p), p.read_bytes()):
        got = np.asarray(load_image(src)).astype(int)
        assert got.shape == (64, 64, 3) and np.abs(got - (200, 60, 20)).max() <= 12

@pytest.mark.parametrize('fmt', ['GIF', 'WEBP', 'PNG', 'TIFF'])
def test_first_frame_of_many(fmt):
    ims = [Image.new('RGB', (40, 30), (s,)*3) for s in (0, 120, 240)]
    assert np.asarray(load_image(as_bytes(ims[0], fmt, save_all=True, append_images=ims[1:]))).max() <= 2

def test_turned_and_transparent_at_once():
    im = Image.new('RGBA', (60, 40), (0, 0, 0, 0)); im.paste((255, 0, 0, 255), (0, 0, 20, 20))
    exif = Image.Exif(); exif[0x0112] = 6
    got = load_image(as_bytes(im, 'PNG', exif=exif))
    assert got.size == (40, 60) and got.getpixel((35, 5)) == (255, 0, 0) and got.getpixel((5, 55)) == (255, 255, 255)

def test_strips_overrun_the_ceiling_by_a_known_factor():
    for top in (3136, 12544, 784*768):
        for h, w in np.random.default_rng(0).integers(1, 5000, (1500, 2)).tolist():
            if max(h, w) > 200*min(h, w): continue
            a, b = smart_size(h, w, 784, top)
            assert a*b <= max(top, 28 * (200*top)**.5) and a % 28 == b % 28 == 0

@pytest.mark.parametrize('mode', ['RGB', 'L', 'RGBA', 'P', 'LA', 'CMYK', '1'])
def test_equal_to_transformers_without_resampling(mode):
    "At sizes the grid likes neither side resamples: pixels, scaling and order alone, at the reference's own budget."
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    proc = Qwen2VLImageProcessorPil(min_pixels=56*56, max_pixels=4096*784)
    for w, h in ((56, 56), (84, 280), (588, 196)):
        im = noise(w, h, mode='RGBA').convert(mode)
        want, got = proc(images=[im], return_tensors='pt'), patchify(im)
        assert got.grid == tuple(want.image_grid_thw[0].tolist())
        assert (got.values - want.pixel_values).abs().max() <= 1e-5

def test_normalise_and_draw():
    im = noise(84, 56)
    assert normalise(im).shape == (3, 56, 84)
    for temporal in (1, 2):
        p = patchify(im, temporal=temporal)
        assert np.array_equal(unpatchify(p), im)
        drawn = np.asarray(draw_cut(p, zoom=4))
        assert drawn.shape == (224, 336, 3) and np.array_equal(drawn[28, 28], np.asarray(im)[7, 7])
        assert (drawn[112, 1:20] == (220, 20, 60)).all()  # between groups

# what is refused, and how

@lru_cache
def bad_pictures():
    good = as_bytes(noise(120, 90), 'PNG'); jpg = as_bytes(noise(120, 90), 'JPEG')
    return dict(zero=b'', text=b'hello', cut_png=good[:999], cut_jpg=jpg[:len(jpg)//2], head_png=good[:33], one=as_bytes(Image.new('L', (1, 1)), 'PNG'),
                strip=as_bytes(Image.new('L', (1, 10_000)), 'PNG'), lying=as_bytes(Image.new('L', (10_000, 1)), 'PNG'),
                bomb=png(60_000, 60_000, b'\0'*1000), bomb2=png(30_000, 3_100, b'\0'*1000), bomb3=png(9_000, 9_000, b'\0'*1000),
                gif_bomb=b'GIF89a' + struct.pack('<HH', 60_000, 60_000) + b'\0'*20,
                bmp_bomb=b'BM' + struct.pack('<IHHIIiiHHIIiiII', 99, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0) + b'\0'*50,
                text_bomb=png(40, 40, b'', 8, 2, chunk(b'zTXt', b'a\0\0' + zlib.compress(b'x'*50_000_000))),
                script=b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\n(x) run\n',
                film=b'\x00\x00\x01\xb3' + struct.pack('>I', 0x06406415) + b'\0'*99)

@pytest.mark.parametrize('name', bad_pictures())
@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
def test_bad_pictures_get_one_sentence(name, tmp_path):
    p = tmp_path/f'{name}.jpg'; p.write_bytes(bad_pictures()[name])
    for src in (p, p.read_bytes()):
        with pytest.raises(ValueError) as e: patchify(src)
        one_sentence(e, 'EPS' if name == 'script' else 'MPEG' if name == 'film' else 'picture')
    for other in (tmp_path/'none.png', tmp_path):
        with pytest.raises(ValueError, match='no picture file'): load_image(other)

def test_bad_pictures_cost_little_memory(tmp_path):
    "All of them in a fresh process: its memory may not grow by what the headers claim, and it ends."
    resource = pytest.importorskip('resource')
    for n, b in bad_pictures().items(): (tmp_path/n).write_bytes(b)
    code = '''
import pathlib, resource, sys, warnings
warnings.simplefilter('ignore')
from omni_lite.vision.image import patchify, Image
patchify(Image.new('RGB', (2000, 2000)))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform == 'darwin' else 1/1024)
before = peak()
for p in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    try: patchify(p)
    except ValueError: continue
    raise SystemExit(f'{p.name} went through')
print((peak() - before) / 2**20)
'''
    done = subprocess.run([sys.executable, '-c', code, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 600, 'megabytes; the largest header asks for 10,800'
    assert MAX_DECODE < Image.MAX_IMAGE_PIXELS

@pytest.mark.parametrize('fmt', ['PNG', 'JPEG', 'GIF', 'WEBP', 'TIFF', 'BMP', 'PPM', 'TGA', 'ICO', 'JPEG2000', 'QOI'])
@pytest.mark.filterwarnings('ignore')
def test_mutated_pictures_open_or_say_one_sentence(fmt):
    rng = np.random.default_rng(1)
    frames = dict(save_all=True, append_images=[noise(40, 30, 1)]) if fmt in ('GIF', 'WEBP', 'PNG', 'TIFF') else {}
    raw, opened = as_bytes(noise(40, 30), fmt, **frames), 0
    for i in range(80):
        b = bytearray(raw[:rng.integers(1, len(raw) + 1)] if i % 3 == 0 else raw)
        where = len(b) if i % 2 else min(len(b), 64)  # half of the damage falls on the header
        for at in rng.integers(0, where, rng.integers(1, 12)): b[at] = rng.integers(0, 256)
        try: p = patchify(bytes(b), 28*28, 56*56)
        except ValueError as e: assert '\n' not in str(e) and len(str(e)) < 300
        else: opened += 1; assert torch.isfinite(p.values).all()
    assert load_image(raw).mode == 'RGB' and opened < 80
