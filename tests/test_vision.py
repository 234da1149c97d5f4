"Edges, parity and properties of the eye: image door, NaViT, projector, video."
import struct
import zlib
from functools import partial
import numpy as np
import pytest
import torch
from PIL import Image
from omni_lite.vision.image import (MAX_DECODE, Patches, load_image, pack, patchify, smart_size, to_rgb, unpatchify)
from omni_lite.vision.navit import NaViT, from_qwen2vl, grid_positions, load_qwen2vl, slice_lengths, to_qwen2vl
from omni_lite.vision.projector import Projector, bridge_state, load_bridge, token_counts
from omni_lite.vision.video import count_tokens, frame_times, inspect_file, read_frames, sample_frames, video_sound

import made
from made import as_bytes, noise

torch.set_num_threads(1)
write_clip = partial(made.write_clip, corner=16, layout='stereo')

def shade(im): return round(np.asarray(im)[-8:, -8:].mean())

# image door

def test_smart_size_is_transformers_rule():
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
    for h, w in np.random.default_rng(0).integers(1, 4000, (3000, 2)).tolist():
        for low, high in ((3136, 3211264), (784, 12544)):
            if max(h, w) > 200 * min(h, w):
                with pytest.raises(ValueError): smart_size(h, w, low, high)
            else: assert smart_size(h, w, low, high) == smart_resize(h, w, 28, low, high)

def test_smart_size_keeps_its_promises():
    for h, w in np.random.default_rng(1).integers(28, 5000, (500, 2)).tolist():
        a, b = smart_size(h, w, 3136, 784*64)
        assert a % 28 == b % 28 == 0 and min(a, b) >= 28
        if max(h, w) / min(h, w) < 20: assert 3136 <= a*b <= 784*64

@pytest.mark.parametrize('mode', ['RGB', 'L', 'RGBA', 'P', 'LA', 'CMYK', '1'])
@pytest.mark.parametrize('temporal', [1, 2])
def test_patchify_is_transformers_processor(mode, temporal):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    proc = Qwen2VLImageProcessorPil(min_pixels=3136, max_pixels=784*20, temporal_patch_size=temporal)
    for w, h in ((57, 90), (200, 61), (28, 28), (300, 310)):
        im = noise(w, h, mode='RGBA').convert(mode)
        want, got = proc(images=[im], return_tensors='pt'), patchify(im, 3136, 784*20, temporal=temporal)
        assert got.grid == tuple(want.image_grid_thw[0].tolist())
        assert (got.values - want.pixel_values).abs().max() <= 1e-5

def test_unpatchify_inverts():
    im = noise(84, 56)
    for t in (1, 2): assert np.array_equal(unpatchify(patchify(im, temporal=t)), im)

@pytest.mark.parametrize('flag', range(1, 9))
def test_exif_upright(flag):
    im = Image.new('RGB', (60, 40), 'black'); im.paste((255, 255, 255), (0, 0, 20, 20))
    back = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[flag]  # transposition that undoes the flag's
    stored = im if back is None else im.transpose(Image.Transpose(back))
    exif = Image.Exif(); exif[0x0112] = flag
    assert np.array_equal(load_image(as_bytes(stored, 'PNG', exif=exif)), im)

def test_modes():
    grey16 = Image.fromarray(np.array([[0, 32768, 65535]*100], np.uint16).repeat(2, 0))
    assert np.asarray(load_image(as_bytes(grey16, 'PNG')))[0, :3, 0].tolist() == [0, 128, 255]
    unit = Image.fromarray(np.array([[0, .5, 1]], np.float32))
    assert np.asarray(to_rgb(unit))[0, :, 0].tolist() == [0, 128, 255]
    pal = noise(20, 20).quantize(4)
    assert np.array_equal(load_image(as_bytes(pal, 'PNG')), pal.convert('RGB'))
    clear = Image.new('RGBA', (20, 20), (9, 9, 9, 0))
    for fmt in ('PNG', 'WEBP'): assert load_image(as_bytes(clear, fmt)).getpixel((3, 3)) == (255, 255, 255)
    key = as_bytes(Image.new('P', (20, 20), 0), 'PNG', transparency=0)
    assert load_image(key).getpixel((3, 3)) == (255, 255, 255)

@pytest.mark.parametrize('fmt', ['GIF', 'WEBP'])
def test_animation_first_frame_and_all(fmt, tmp_path):
    ims = [Image.new('RGB', (40, 30), (s,)*3) for s in (0, 80, 160, 240)]
    p = tmp_path/f'a.{fmt.lower()}'
    ims[0].save(p, save_all=True, append_images=ims[1:], duration=500, lossless=True)
    assert shade(load_image(p)) == 0
    assert [shade(i) for i in sample_frames(p, fps=2)] == [0, 80, 160, 240]
    assert [shade(i) for i in sample_frames(p, fps=1)] == [0, 160]
    assert inspect_file(p, fps=2).num_frames == 4

def test_bad_pictures(tmp_path):
    good = as_bytes(noise(120, 90), 'PNG')
    (tmp_path/'a.png').write_bytes(b''); (tmp_path/'b.jpg').write_text('hello'); (tmp_path/'c.png').write_bytes(good[:999])
    for n in 'a.png', 'b.jpg', 'c.png', 'missing.png':
        with pytest.raises(ValueError, match='picture'): load_image(tmp_path/n)
    with pytest.raises(ValueError, match='1x1'): load_image(as_bytes(Image.new('L', (1, 1)), 'PNG'))
    with pytest.raises(ValueError, match='200 times'): patchify(Image.new('L', (10_000, 1)))
    header = b'\x89PNG\r\n\x1a\n' + struct.pack('>I4sIIBBBBB', 13, b'IHDR', 60_000, 60_000, 8, 2, 0, 0, 0)
    header += struct.pack('>I', zlib.crc32(header[12:]))
    with pytest.raises(ValueError, match='too large|too many'): load_image(header + good[33:])
    assert 60_000**2 > MAX_DECODE

@pytest.mark.parametrize('fmt', ['PNG', 'JPEG', 'GIF', 'WEBP', 'TIFF', 'BMP'])
def test_mutated_pictures_load_or_raise_valueerror(fmt):
    rng, raw, opened = np.random.default_rng(0), as_bytes(noise(40, 30), fmt), 0
    for _ in range(60):
        b = bytearray(raw[:rng.integers(1, len(raw) + 1)] if rng.random() < .4 else raw)
        for i in rng.integers(0, len(b), rng.integers(1, 12)): b[i] = rng.integers(0, 256)
        try: assert load_image(bytes(b)).mode == 'RGB'; opened += 1
        except ValueError: pass
    assert load_image(raw).size == (40, 30)

# NaViT

GRIDS = [(1, 4, 6), (1, 2, 2), (2, 4, 4), (1, 6, 4), (1, 8, 2)]

def qwen_tower(seed=0, depth=2, dim=64, heads=4):
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel, Qwen2VLVisionConfig
    torch.manual_seed(seed)
    net = Qwen2VisionTransformerPretrainedModel(
        Qwen2VLVisionConfig(depth=depth, embed_dim=dim, num_heads=heads, mlp_ratio=2, hidden_size=48)).eval()
    for p in net.parameters(): torch.nn.init.normal_(p, std=.1)  # biases too, or a lost one would go unseen
    return net

@pytest.mark.parametrize('prefix', ['', 'visual.', 'model.visual.', 'model.visual_model.'])
@pytest.mark.parametrize('packed', [False, True])
@torch.inference_mode()
def test_navit_and_bridge_equal_qwen2vl(prefix, packed):
    net = qwen_tower()
    state = {prefix + k: v for k, v in net.state_dict().items()} | ({'lm_head.weight': torch.ones(1)} if prefix else {})
    ours = load_qwen2vl(NaViT(64, 2, 4, 128), state).eval()
    x = torch.randn(sum(t*h*w for t, h, w in GRIDS), 1176)
    want, got = net(x, torch.tensor(GRIDS)), ours(x, GRIDS, packed=packed)
    assert (got - want.last_hidden_state).abs().max() <= 1e-4
    if prefix in ('visual.', 'model.visual.', ''):
        bridge = load_bridge(Projector(64, 48), state)
        assert (bridge(got) - want.pooler_output).abs().max() <= 1e-4
        assert len(bridge(got)) == sum(token_counts(GRIDS))

def test_names_go_both_ways():
    net = qwen_tower()
    theirs = {k: v for k, v in net.state_dict().items() if not k.startswith('merger.')}
    back = to_qwen2vl(load_qwen2vl(NaViT(64, 2, 4, 128), theirs))
    assert set(back) == {f'model.visual_model.{k}' for k in theirs}
    assert all(torch.equal(back[f'model.visual_model.{k}'], v) for k, v in theirs.items())
    bridge = Projector(64, 48); other = load_bridge(Projector(64, 48), bridge_state(bridge) | back)
    assert all(torch.equal(a, b) for a, b in zip(bridge.parameters(), other.parameters()))

@torch.inference_mode()
def test_time_folds_and_unfolds():
    net, im = qwen_tower(), noise(90, 60)
    two, one = patchify(im), patchify(im, temporal=1)
    light = load_qwen2vl(NaViT(64, 2, 4, 128, temporal=1), net.state_dict())
    want = net(two.values, torch.tensor([two.grid])).last_hidden_state
    assert (light(one.values, [one.grid]) - want).abs().max() <= 1e-4
    again = load_qwen2vl(NaViT(64, 2, 4, 128), to_qwen2vl(light))
    assert (again(two.values, [two.grid]) - want).abs().max() <= 1e-4

@torch.inference_mode()
def test_pictures_do_not_see_each_other():
    eye = NaViT(32, 2, 2, 64, temporal=1)
    x = torch.randn(sum(slice_lengths(GRIDS)), 588); y = x.clone(); y[24:28] += 1  # the second picture
    for packed in (False, True):
        moved = (eye(x, GRIDS, packed) - eye(y, GRIDS, packed)).abs().amax(1) > 1e-6
        assert moved[24:28].all() and moved.sum() == 4

def test_every_road_gives_equal_gradients():
    torch.manual_seed(0); eye = NaViT(32, 2, 2, 64, temporal=1)
    for grids in ([(1, 4, 4)]*3, GRIDS):
        x, grads = torch.randn(sum(slice_lengths(grids)), 588), []
        for packed in (False, True):
            eye.zero_grad(); eye(x, grids, packed).square().sum().backward()
            grads.append(torch.cat([p.grad.flatten() for p in eye.parameters()]))
        assert torch.allclose(*grads, rtol=1e-3, atol=1e-3) and grads[0].abs().sum() > 0

def test_navit_order_of_pictures_does_not_matter():
    eye = NaViT(32, 1, 2, 64, temporal=1)
    ps = [patchify(noise(w, h, i), temporal=1) for i, (w, h) in enumerate([(56, 84), (112, 56), (56, 84)])]
    a, b = eye(*pack(ps)), eye(*pack(ps[::-1]))
    parts = a.split([len(p.values) for p in ps])
    assert torch.allclose(torch.cat(parts[::-1]), b, atol=1e-5)

def test_navit_refuses():
    eye = NaViT(32, 1, 2, 64)
    with pytest.raises(ValueError, match='merge size'): eye(torch.randn(12, 1176), [(1, 3, 4)])
    with pytest.raises(ValueError, match='patches given'): eye(torch.randn(16, 588), [(1, 4, 4)])
    with pytest.raises(ValueError, match='do not fit'): load_qwen2vl(eye, qwen_tower().state_dict())
    with pytest.raises(ValueError, match='at least one'): pack([])
    assert 'merger.ln_q.weight' not in from_qwen2vl(qwen_tower().state_dict())
    assert grid_positions([(2, 2, 2)]).shape == (8, 2)
    assert Patches(torch.zeros(1), (1, 1, 1)).grid == (1, 1, 1)

# video

def test_frame_times():
    assert frame_times(0) == [0] and frame_times(2.5, 2) == [0, .5, 1, 1.5, 2]
    for s in (1, 31.5, 32, 33, 100, 86400):
        t = frame_times(s)
        assert len(t) == min(32, int(np.ceil(s))) and t == sorted(set(t)) and t[-1] < s
    assert frame_times(50, max_frames=1) == [0]
    with pytest.raises(ValueError): frame_times(5, fps=0)

@pytest.mark.parametrize('name', ['a.mp4', 'a.mkv', 'a.avi', 'a.ts'])
def test_frames_of_containers(name, tmp_path):
    shades = [20*(i//4) for i in range(40)]  # one shade a second, ten seconds
    p = write_clip(tmp_path/name, shades)
    got = [shade(i) for i in sample_frames(p)]
    assert len(got) == 10 and np.abs(np.array(got) - 20*np.arange(10)).max() <= 4
    thin = [shade(i) for i in sample_frames(p, max_frames=4)]
    assert np.abs(np.array(thin) - [0, 60, 120, 180]).max() <= 4
    jumped = [shade(i) for _, i in read_frames(p, max_frames=4, jump=.1)]
    assert np.abs(np.array(jumped) - [0, 60, 120, 180]).max() <= 4

@pytest.mark.parametrize('name', ['v.mp4', 'v.mkv'])
def test_variable_frame_rate(name, tmp_path):
    p = write_clip(tmp_path/name, [0, 50, 100, 150, 200], rate=1000, pts=[0, 100, 200, 2000, 3900])
    got = [shade(i) for i in sample_frames(p)]
    assert np.abs(np.array(got) - [0, 100, 150, 150]).max() <= 4  # what is on screen at 0, 1, 2, 3 s

@pytest.mark.parametrize('turn', [90, 180, -90])
def test_rotation_follows_the_matrix_in_the_file(turn, tmp_path):
    p = write_clip(tmp_path/'r.mp4', [0]*4, turn=turn)
    raw = p.read_bytes(); at = raw.index(b'tkhd') + 4 + 4 + 20 + 8 + 8
    a, b, _, c, d = (v / 65536 for v in struct.unpack('>5i', raw[at:at+20]))
    x, y = 8 - 32, 8 - 24  # the white corner, seen from the middle
    u, v = a*x + c*y, b*x + d*y
    im = np.asarray(sample_frames(p)[0]); h, w = im.shape[:2]
    assert (w, h) == ((48, 64) if turn % 180 else (64, 48))
    assert im[round(h/2 + v), round(w/2 + u)].mean() > 200 and im.mean() < 100

def test_large_frames_keep_the_budget(tmp_path):
    p = write_clip(tmp_path/'big.mp4', [0]*4, size=(640, 480))
    w, h = sample_frames(p, max_pixels=784*16)[0].size
    assert w % 28 == h % 28 == 0 and w*h <= 784*16

def test_sound(tmp_path):
    p = write_clip(tmp_path/'s.mp4', [0]*8, tone=2.)
    wave, rate = video_sound(p)
    assert rate == 8000 and wave.dtype == np.float32 and wave.ndim == 1 and abs(len(wave)/rate - 2) < .2
    assert abs(wave[4000:12000].mean() - .25) < .05
    assert len(video_sound(p, max_seconds=.5)[0]) == 4000
    assert video_sound(write_clip(tmp_path/'mute.mp4', [0]*4)) is None

def test_bad_clips(tmp_path):
    (tmp_path/'empty.mp4').write_bytes(b''); (tmp_path/'text.mp4').write_text('hello '*100)
    (tmp_path/'list.m3u8').write_text('#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n/etc/hostname\n#EXT-X-ENDLIST\n')
    for n in ('empty.mp4', 'text.mp4', 'list.m3u8', 'missing.mp4'):
        for f in (sample_frames, video_sound, inspect_file):
            with pytest.raises(ValueError, match='clip'): f(tmp_path/n)
    song = write_clip(tmp_path/'song.mp4', [], tone=1.)
    for f in (sample_frames, inspect_file):
        with pytest.raises(ValueError, match='no picture track'): f(song)

@pytest.mark.parametrize('name', ['m.mp4', 'm.mkv', 'm.ts', 'm.avi', 'm.gif'])
def test_mutated_clips_decode_or_raise_valueerror(name, tmp_path):
    p = tmp_path/name
    if name.endswith('gif'): noise(40, 30).save(p, save_all=True, append_images=[noise(40, 30, i) for i in (1, 2)])
    else: write_clip(p, [10*i for i in range(12)], tone=1.)
    rng, raw, bad = np.random.default_rng(0), p.read_bytes(), tmp_path/('bad' + p.suffix)
    for _ in range(25):
        b = bytearray(raw[:rng.integers(1, len(raw) + 1)] if rng.random() < .4 else raw)
        for i in rng.integers(0, len(b), rng.integers(1, 30)): b[i] = rng.integers(0, 256)
        bad.write_bytes(b)
        for f in (sample_frames, video_sound):
            try: out = f(bad)
            except ValueError: continue
            if f is sample_frames: assert 1 <= len(out) <= 32 and all(i.mode == 'RGB' for i in out)

def test_bill_equals_what_patchify_makes(tmp_path):
    for w, h in ((57, 90), (500, 61), (1200, 900)):
        im = noise(w, h); bill, p = count_tokens(h, w, temporal=1), patchify(im, temporal=1)
        assert bill.patches == len(p.values) and bill.tokens == token_counts([p.grid])[0]
        assert bill.megabytes == round(p.values.numel() * 4 / 2**20, 2) and bill.positions == bill.tokens + 2
    exif = Image.Exif(); exif[0x0112] = 6
    (tmp_path/'e.jpg').write_bytes(as_bytes(noise(200, 61), 'JPEG', exif=exif))
    assert inspect_file(tmp_path/'e.jpg').size == count_tokens(200, 61).size
    assert count_tokens(2000, 2000, seconds=3600).tokens <= 32 * 768
