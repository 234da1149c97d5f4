"Clips: odd and broken files, bounded work, stamps, merged neighbours, and what a file costs."
import math, struct, subprocess, sys
import av
import numpy as np
import pytest
import torch
from PIL import Image
from omni_lite.config import preset
from omni_lite.plan import cost_of, cost_row, inspect_command, sound_seconds
from omni_lite.vision import video as V
from omni_lite.vision.image import patchify
from omni_lite.vision.long_video import BUDGET, clock, find_event, made_clip, merge_frames, watch
from omni_lite.vision.video import (clip_frames, frame_times, inspect_file, measure_file, open_clip, read_frames, sample_frames,
                                    video_sound)

from made import write_clip

torch.set_num_threads(1)

def shade(im): return round(np.asarray(im).mean())

def close(got, want): assert len(got) == len(want) and np.abs(np.array(got) - want).max() <= 4, got

# far apart: jumps

def test_one_key_frame_is_walked_not_leapt(tmp_path, monkeypatch):
    "A recording with a single key frame: leaping would decode the whole file for every moment."
    p = write_clip(tmp_path/'one.mp4', [2*i for i in range(120)], g=1000, keyint_min=1000, sc_threshold=0, bf=0)
    monkeypatch.setattr(V, 'MAX_LEAP', 20)
    done, whole = [], V._decode
    def counted(f, stream):
        for found in whole(f, stream): done.append(0); yield found
    monkeypatch.setattr(V, '_decode', counted)
    close([shade(im) for _, im in read_frames(p, max_frames=6, jump=1.)], [8*t for t in frame_times(30, 1, 6)])
    assert len(done) <= 120 + 2*20 + 4
    monkeypatch.setattr(V, 'MAX_WALK', 50)
    with pytest.raises(ValueError, match='too long to search'): list(read_frames(p, max_frames=6, jump=1.))

@pytest.mark.parametrize('name', ['d.mp4', 'd.mkv'])
def test_a_day_is_a_handful_of_jumps(name, tmp_path, monkeypatch):
    hours = range(25)
    p = write_clip(tmp_path/name, [10*h for h in hours], rate=1000, pts=[h*3_600_000 for h in hours])
    seen, whole = [], V._decode
    def counted(f, stream):
        for found in whole(f, stream): seen.append(0); yield found
    monkeypatch.setattr(V, '_decode', counted)
    frames = sample_frames(p, max_frames=7, with_times=True)
    close([shade(im) for _, im in frames], [10*(t//3600) for t, _ in frames])
    assert [round(t/3600) for t, _ in frames] == [0, 4, 8, 12, 16, 20, 24] and len(seen) < 200
    assert measure_file(p)[1] >= 86_400 and inspect_file(p).num_frames == 32

def test_a_header_that_claims_a_day_for_two_seconds(tmp_path):
    p = write_clip(tmp_path/'short.mp4', [0, 50, 100, 150, 200, 250, 250, 250])
    raw = bytearray(p.read_bytes())
    for box in (b'mvhd', b'tkhd', b'mdhd'):
        at = raw.index(box) + 4 + (20 if box == b'tkhd' else 16)
        raw[at:at+4] = struct.pack('>I', 2_000_000_000)
    p.write_bytes(raw)
    frames = sample_frames(p, with_times=True)
    assert 1 <= len(frames) <= 32 and shade(frames[0][1]) <= 4

def test_a_file_cut_short_gives_what_it_has(tmp_path):
    raw = write_clip(tmp_path/'whole.ts', [20*(i//4) for i in range(40)], g=4).read_bytes()
    (tmp_path/'cut.ts').write_bytes(raw[:len(raw)//2])
    for jump in (10., .1):
        got = [shade(im) for _, im in read_frames(tmp_path/'cut.ts', jump=jump)]
        assert 1 <= len(got) < 10 and np.abs(np.array(got) - 20*np.arange(len(got))).max() <= 24

def test_a_hole_is_skipped(tmp_path):
    p = write_clip(tmp_path/'hole.mkv', [20*(i//4) for i in range(40)], g=4)
    raw = bytearray(p.read_bytes()); n = len(raw)
    raw[n//2:n//2 + n//20] = bytes(n//20); p.write_bytes(raw)
    assert len(sample_frames(p)) >= 5

# kinds

def test_a_cover_is_no_picture_track(tmp_path):
    song = write_clip(tmp_path/'song.mp4', [], tone=2.)
    for f in (sample_frames, inspect_file):
        with pytest.raises(ValueError, match='no picture track'): f(song)
    class Cover: disposition, width, height, codec_context = av.stream.Disposition.attached_pic, 9, 9, 'png'
    class File:
        class streams: video = [Cover()]
    with pytest.raises(ValueError, match='no picture track'): V._picture_track(File, 'x')
    class Wall(Cover): disposition, width, height = av.stream.Disposition.default, 60_000, 60_000
    File.streams.video = [Wall()]
    with pytest.raises(ValueError, match='too large'): V._picture_track(File, 'x')

@pytest.mark.parametrize('fmt', ['GIF', 'WEBP', 'PNG'])
def test_animations(fmt, tmp_path):
    ims = [Image.new('RGB', (40, 30), (s,)*3) for s in (0, 80, 160, 240)]
    p = tmp_path/'a.bin'
    ims[0].save(p, fmt, save_all=True, append_images=ims[1:], duration=1000, **({'lossless': True} if fmt == 'WEBP' else {}))
    close([shade(i) for i in sample_frames(p)], [0, 80, 160, 240])
    assert inspect_file(p).num_frames == 4 and measure_file(p) == ((30, 40), 4.)

def test_many_pages_are_one_picture(tmp_path):
    ims = [Image.new('RGB', (60, 80), (s,)*3) for s in (40, 200)]
    for fmt in ('TIFF', 'MPO'):
        p = tmp_path/f'p.{fmt}'; ims[0].save(p, fmt, save_all=True, append_images=ims[1:])
        assert measure_file(p) == ((80, 60), None)
        close([shade(i) for i in sample_frames(p)], [40])

def test_an_endless_animation_is_refused(tmp_path, monkeypatch):
    p = tmp_path/'a.gif'; ims = [Image.effect_noise((40, 30), i + 1) for i in range(9)]
    ims[0].save(p, save_all=True, append_images=ims[1:])
    monkeypatch.setattr(V, 'MAX_ANIMATION', 40*30*8)
    for f in (sample_frames, inspect_file):
        with pytest.raises(ValueError, match='too many'): f(p)

# broken

def bad_clips(folder):
    clip = write_clip(folder/'good.mp4', [10*i for i in range(12)]).read_bytes()
    mdat = clip.index(b'mdat')
    made = dict(zero=b'', text=b'hello '*100, head=clip[:100], no_index=clip[:clip.index(b'moov') - 4],
                scrambled=clip[:mdat + 4] + bytes(b ^ 0x55 for b in clip[mdat + 4:clip.index(b'moov') - 4]) + clip[clip.index(b'moov') - 4:])
    (folder/'good.mp4').unlink()
    with av.open(str(folder/'no_frames.mp4'), 'w') as f:
        v = f.add_stream('libx264', rate=1); v.width, v.height, v.pix_fmt = 32, 32, 'yuv420p'; f.start_encoding()
    for n, b in made.items(): (folder/f'{n}.mp4').write_bytes(b)
    write_clip(folder/'song.mp4', [], tone=1.)
    return sorted(folder.iterdir())

def test_bad_clips_get_one_sentence(tmp_path):
    paths = bad_clips(tmp_path)
    assert len(paths) == 7
    for p in (*paths, tmp_path/'missing.mp4', tmp_path):
        for f in (sample_frames, inspect_file, watch):
            with pytest.raises(ValueError) as e: f(p)
            assert 'clip' in str(e.value) and '\n' not in str(e.value) and len(str(e.value)) < 300 + len(str(p))

@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
def test_bad_pictures_as_clips_name_the_picture(tmp_path):
    for side in (60_000, 9_600):  # over Pillow's ceiling, and between Pillow's and ours
        head = struct.pack('<IHHIIiiHHIIiiII', 99, 0, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
        (tmp_path/'bomb.mp4').write_bytes(b'BM' + head + b'\0'*50)
        for f in (sample_frames, inspect_file):
            with pytest.raises(ValueError, match='too large|too many'): f(tmp_path/'bomb.mp4')
    Image.new('L', (1, 1)).save(tmp_path/'dot.png')
    for f in (sample_frames, inspect_file):
        with pytest.raises(ValueError, match='1x1'): f(tmp_path/'dot.png')
    Image.new('L', (1, 10_000)).save(tmp_path/'strip.png')
    with pytest.raises(ValueError, match='200 times'): inspect_file(tmp_path/'strip.png')

@pytest.mark.parametrize('name', ['m.mp4', 'm.mkv', 'm.webm', 'm.ts', 'm.avi', 'm.gif', 'm.webp'])
@pytest.mark.filterwarnings('ignore')
def test_mutated_clips_in_a_process_that_ends(name, tmp_path):
    "Seeded damage to header and body, with and without jumps: frames or one sentence, and no crash of the decoder."
    p = tmp_path/name
    if p.suffix in ('.gif', '.webp'):
        ims = [Image.effect_noise((40, 30), 50).convert('RGB') for _ in range(4)]
        ims[0].save(p, save_all=True, append_images=ims[1:], duration=900)
    elif p.suffix == '.webm':
        with av.open(str(p), 'w') as f:
            v = f.add_stream('libvpx', rate=4); v.width, v.height, v.pix_fmt = 64, 48, 'yuv420p'
            for i in range(12): f.mux(v.encode(av.VideoFrame.from_image(Image.new('RGB', (64, 48), (10*i,)*3))))
            f.mux(v.encode())
    else: write_clip(p, [10*i for i in range(12)], tone=1.)
    code = '''
import sys, pathlib, warnings
import numpy as np
warnings.simplefilter('ignore')
from omni_lite.vision.video import inspect_file, read_frames, sample_frames, video_sound
p = pathlib.Path(sys.argv[1]); raw, bad, rng, good = p.read_bytes(), p.with_name('bad' + p.suffix), np.random.default_rng(2), 0
for i in range(24):
    b = bytearray(raw[:rng.integers(1, len(raw) + 1)] if i % 3 == 0 else raw)
    where = len(b) if i % 2 else min(len(b), 400)
    for at in rng.integers(0, where, rng.integers(1, 20)): b[at] = rng.integers(0, 256)
    bad.write_bytes(b)
    for f in (sample_frames, video_sound, inspect_file, lambda q: list(read_frames(q, jump=.1))):
        try: out = f(bad)
        except ValueError as e: assert '\\n' not in str(e), e
        else: good += f is sample_frames and 1 <= len(out) <= 32
print(good)
'''
    done = subprocess.run([sys.executable, '-c', code, str(p)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 0

# sound

def test_sound_by_its_header(tmp_path):
    import soundfile as sf
    sf.write(tmp_path/'a.wav', np.zeros(24_000), 16_000); (tmp_path/'a.wav').rename(tmp_path/'a.png')
    assert sound_seconds(tmp_path/'a.png') == 1.5
    assert abs(sound_seconds(write_clip(tmp_path/'s.mp4', [0]*8, tone=2.)) - 2) < .3
    assert sound_seconds(write_clip(tmp_path/'m.mp4', [0]*8)) is None
    (tmp_path/'n.wav').write_bytes(b'RIFF'); assert sound_seconds(tmp_path/'n.wav') is None

# stamps and merging

def test_clock():
    assert [clock(s) for s in (0, 59.99, 60, 3599, 3600, 86_399)] == ['0:00', '0:59', '1:00', '59:59', '1:00:00', '23:59:59']

def test_merge_keeps_the_mean_and_the_order():
    x = torch.rand(50, 3, 4, generator=torch.Generator().manual_seed(0))
    for keep in (1, 7, 50, 99):
        got = merge_frames(enumerate(x), keep)
        assert len(got) == min(keep, 50) and got[0].start == 0 and got[-1].end == 49
        assert all(a.end + 1 == b.start and a.count == a.end - a.start + 1 for a, b in zip(got, got[1:]))
        for m in got: assert torch.allclose(m.mean, x[m.start:m.end + 1].mean(0), atol=1e-5)
    assert merge_frames([], 3) == []
    with pytest.raises(ValueError, match='one or more'): merge_frames(enumerate(x), 0)

def test_merge_works_on_tokens_and_on_bytes():
    tokens = torch.arange(12.).view(4, 3); tokens[1] = tokens[0] + .1
    assert [(m.start, m.end) for m in merge_frames(enumerate(tokens), 3)] == [(0, 1), (2, 2), (3, 3)]
    assert merge_frames([(0, torch.tensor([0], dtype=torch.uint8)), (1, torch.tensor([255], dtype=torch.uint8))], 1)[0].mean == 127.5

@pytest.mark.parametrize('keep,where', [(4, 9), (8, 21), (3, 0)])
def test_the_odd_second_survives(keep, where):
    x = torch.zeros(30, 8); x[where] = 1
    assert any(m.start == m.end == where and m.mean.eq(1).all() for m in merge_frames(enumerate(x), keep))

def test_watch_keeps_what_thinning_misses(tmp_path):
    shades = [40]*240; shades[110:112] = [220]*2
    p = write_clip(tmp_path/'flash.mp4', shades, rate=1, g=10)
    thin, seen = sample_frames(p, max_frames=8), watch(p, 8)
    assert max(map(shade, thin)) < 60 and len(seen) == 8
    assert [t for t, im in seen if shade(im) > 180] == [110]
    assert len(watch(p, 8, looks=8)) == 8  # looks bound the work
    assert [t for t, _ in watch(write_clip(tmp_path/'few.mp4', [9]*8), 8)] == [0, 1]

def test_event_fades_as_its_share_of_a_moment():
    a, b = (dict(made_clip([5], s, seed=3))[5] for s in (5, 99))
    mean = merge_frames([(0, a), (1, b), (2, b), (3, b)], 1)[0].mean
    assert torch.allclose(mean - b, (a - b)/4, atol=1e-6) and (a - b).abs().max() > .1

def test_find_event():
    assert find_event(30, 12).error == 0 and find_event(30, 12, stamps=True).error <= 1
    bare, best = find_event(1200, 700.5), find_event(1200, 700.5, merge=True, stamps=True)
    assert not bare.found and bare.error == math.inf
    assert best.found and best.error <= 1 and max(bare.positions, best.positions) <= BUDGET
    assert find_event(1200, 700.5, merge=True).error > 60  # seen, but dated by its number
    assert find_event(300, 200, merge=True, stamps=True, seed=5) == find_event(300, 200, merge=True, stamps=True, seed=5)

@pytest.mark.gpu
def test_merging_stays_on_its_device():
    if not torch.cuda.is_available(): pytest.skip('no CUDA device')
    assert all(m.mean.is_cuda for m in merge_frames(enumerate(torch.rand(9, 3, device='cuda')), 4))

# what a file costs

@pytest.mark.parametrize('rung', ['nano', '7b'])
def test_cost_is_what_patchify_makes(rung, tmp_path):
    cfg = preset(rung); v = cfg.vision
    p = tmp_path/'p.png'; Image.effect_noise((333, 97), 50).save(p)
    for tokens in (None, 9, 60):
        r = cost_row(p, cfg, tokens)
        most = tokens*784 if tokens else v.max_pixels
        n = len(patchify(p, min(v.min_pixels, most), most, temporal=v.temporal).values)
        assert (r['kind'], r['patches'], r['tokens'], r['positions']) == ('picture', n, n//4, n//4 + 2)
    llm = cfg.llm
    assert r['cache_mb'] == round(r['positions']*llm.layers*2*llm.kv_heads*llm.dim//llm.num_heads*2/2**20, 2)

def test_cost_of_clips_and_sounds(tmp_path, capsys):
    nano = preset('nano')
    p = write_clip(tmp_path/'film.bin.mp4', [0]*80, tone=3., turn=90)
    r = cost_row(p, nano)
    assert r['kind'] == 'clip' and r['num_frames'] == len(sample_frames(p, max_frames=nano.vision.max_frames)) == 8
    assert r['given'] == (64, 48) and 37 <= r['sound']['tokens'] <= 42
    assert cost_row(p, nano, frames=3)['num_frames'] == 3
    song = write_clip(tmp_path/'song.mp4', [], tone=2.)
    assert cost_row(song, nano)['kind'] == 'sound' and ' codes' in cost_of(song, nano)
    inspect_command([p, song], preset='7b', tokens=16, frames=2)
    assert '2 frames' in (out := capsys.readouterr().out) and 'if heard' in out and 'tokens of 80 ms' in out
    (tmp_path/'x.png').write_bytes(b'nothing')
    with pytest.raises(ValueError, match='clip'): cost_of(tmp_path/'x.png', nano)
    with pytest.raises(ValueError, match='one or more'): cost_row(p, nano, tokens=0)

def test_frames_come_one_by_one(tmp_path):
    it = clip_frames(write_clip(tmp_path/'a.mp4', [0]*40))
    assert next(it)[0] == 0 and next(it)[0] == 1
    it.close()
    with open_clip(tmp_path/'a.mp4') as f: assert f.streams.video
    assert video_sound(tmp_path/'a.mp4') is None
