"""Both mels against the formulas they come from, and the door for sound against everything that people hand in."""
import math, struct
import numpy as np, pytest, soundfile as sf, torch
import torchaudio.functional as AF
from hypothesis import HealthCheck, given, settings, strategies as st
from omni_lite.audio.mel import (EAR_RATE, HIFIGAN, as_mono, load_sound, mel_filters, pad_tokens, resample, sound_notes,
                                 sound_pieces, voice_mel, whisper_mel)

some = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
rate_ = st.sampled_from([8000, 11025, 16000, 22050, 24000, 44100, 48000, 96000, 192000, 44101, 12345])

def noise(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * .1
def sweep(n, rate): return (.5 * torch.sin(2*math.pi * (100 * (t := torch.arange(n) / rate) + 400 * t**2))).numpy()

def slaney(sample_rate, n_fft, n_mels, f_min, f_max):
    "librosa.filters.mel, written out in float64."
    hz = lambda m: np.where(m < 15, m * 200/3, 1000 * np.exp((m - 15) * np.log(6.4) / 27))
    mel = lambda f: f * 3/200 if f < 1000 else 15 + np.log(f / 1000) * 27 / np.log(6.4)
    edges, bins = hz(np.linspace(mel(f_min), mel(f_max), n_mels + 2)), np.linspace(0, sample_rate / 2, n_fft//2 + 1)
    rise = (bins[None] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins[None]) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0, np.minimum(rise, fall)) * (2 / (edges[2:] - edges[:-2]))[:, None]  # (M, bins)

def hifigan_mel(x, n_fft, hop, win, sample_rate, n_mels, f_min, f_max):
    "HiFi-GAN's mel_spectrogram, frame by frame in float64."
    pad = (n_fft - hop) // 2
    x, w = np.pad(x.astype(np.float64), pad, mode='reflect'), np.zeros(n_fft)
    at = (n_fft - win) // 2
    w[at:at + win] = .5 - .5 * np.cos(2*np.pi * np.arange(win) / win)
    frames = np.stack([x[i:i + n_fft] * w for i in range(0, len(x) - n_fft + 1, hop)])
    power = np.abs(np.fft.rfft(frames)) ** 2
    return np.log(np.maximum(1e-5, slaney(sample_rate, n_fft, n_mels, f_min, f_max) @ np.sqrt(power + 1e-9).T))

# the mels ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('n_mels', [80, 128])
@pytest.mark.parametrize('n', [400, 1000, 16000, 16079, 16080, 16159, 100_003, 479_700, 479_999, 480_000])
def test_whisper_mel_is_transformers(n_mels, n):
    from transformers import WhisperFeatureExtractor
    x = noise(n, seed=n); x[-1] = 1.  # a click on the last sample: the loudest frame may be one that is dropped
    theirs = WhisperFeatureExtractor(feature_size=n_mels)(x.numpy(), sampling_rate=16000, return_tensors='pt')
    assert (whisper_mel(x, n_mels) - theirs.input_features[0][:, :n // 160]).abs().max() <= 1e-4

def test_whisper_mel_of_silence_and_of_a_batch():
    assert whisper_mel(torch.zeros(1600)).eq(-1.5).all()
    x = noise(3, 2, 5000)
    torch.testing.assert_close(whisper_mel(x)[2, 1], whisper_mel(x[2, 1]))

@pytest.mark.parametrize('n_mels', [80, 128])
@pytest.mark.parametrize('n_fft, rate', [(400, 16000), (1024, 22050), (1920, 24000)])
def test_filters(n_mels, n_fft, rate):
    want = slaney(rate, n_fft, n_mels, 0., 8000.)
    np.testing.assert_allclose(mel_filters(rate, n_fft, n_mels, 8000.).T.numpy(), want, atol=2e-6)

def test_filters_hold_numbers_while_a_model_is_counted():
    mel_filters.cache_clear()
    with torch.device('meta'): assert mel_filters(16000, 400, 80, 8000.).device.type == 'cpu'

@pytest.mark.parametrize('sizes', [
    HIFIGAN, dict(HIFIGAN, f_max=None), dict(n_fft=2048, hop_length=300, win_length=1200, sample_rate=24000, f_min=80., f_max=7600.),
    dict(n_fft=1920, hop_length=480, sample_rate=24000)], ids=['V1', 'V1 for losses', 'with a shorter window', 'ours'])
def test_voice_mel_is_hifigan(sizes):
    rate = sizes['sample_rate']
    x = sweep(30_000, rate) + .1 * noise(30_000).numpy()  # noise below: of a pure tone float32 has no quiet bins
    want = hifigan_mel(x, sizes['n_fft'], sizes['hop_length'], sizes.get('win_length', sizes['n_fft']), rate, 80,
                       sizes.get('f_min', 0.), sizes.get('f_max', 8000.) or rate / 2)
    got = voice_mel(torch.from_numpy(x), **sizes)
    assert got.shape == want.shape and np.abs(got.numpy() - want).max() <= 5e-4
    exact = voice_mel(torch.from_numpy(x).double(), **sizes)  # what is left then is the rounding of the filters
    assert np.abs(exact.numpy() - want).max() <= 1e-4

@pytest.mark.parametrize('f', [whisper_mel, voice_mel, lambda x: voice_mel(x, **HIFIGAN),
                               lambda x: whisper_mel(resample(x, 24000, 16000), 128)])
def test_gradients(f):
    x = noise(6000).requires_grad_(); x.data[:3000] = 0
    f(x).square().mean().backward()
    assert x.grad.isfinite().all() and x.grad.abs().sum() > 0

def test_gradients_are_right():
    x = noise(700).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: voice_mel(x, 8, 256, 64, 16000), x, fast_mode=True)
    assert torch.autograd.gradcheck(lambda x: whisper_mel(x, 20), x, fast_mode=True)

@some
@given(n=st.integers(0, 9000), n_mels=st.sampled_from([20, 80, 128]), lead=st.sampled_from([(), (1,), (2, 3)]))
def test_shapes(n, n_mels, lead):
    x = noise(*lead, n)
    assert whisper_mel(x, n_mels).shape == (*lead, n_mels, n // 160)
    assert voice_mel(x, n_mels).shape == (*lead, n_mels, n // 480)
    assert voice_mel(x, n_mels, **HIFIGAN).shape == (*lead, n_mels, n // 256)
    for m in (whisper_mel(x, n_mels), voice_mel(x, n_mels)): assert m.isfinite().all()

@some
@given(n=st.integers(0, 5000), rate=st.sampled_from([16000, 24000]))
def test_pad_tokens(n, rate):
    one = round(.08 * rate)
    y = pad_tokens(torch.ones(n), rate)
    assert y.shape[-1] % one == 0 and y.shape[-1] >= one and y.shape[-1] - n <= one and y.sum() == n
    if rate == 16000: assert whisper_mel(y).shape[-1] % 8 == 0
    else: assert voice_mel(y).shape[-1] % 4 == 0

# the door ------------------------------------------------------------------------------------------------------------
@some
@given(n=st.integers(1, 3000), channels=st.sampled_from([0, 1, 2, 8]), rate=rate_, to=st.sampled_from([16000, 24000, 22050]),
       dtype=st.sampled_from(['uint8', 'int16', 'int32', 'float16', 'float32', 'float64', '>i2']))
def test_any_array(n, channels, rate, to, dtype):
    x = np.tile(sweep(n, rate)[:, None], max(channels, 1)) if channels else sweep(n, rate)
    if np.dtype(dtype).kind == 'i': x = x * np.iinfo(dtype).max
    if dtype == 'uint8': x = x * 127 + 128
    y = load_sound(x.astype(dtype), rate, to)
    assert y.dtype == torch.float32 and y.ndim == 1 and y.isfinite().all()
    assert len(y) == pytest.approx(math.ceil(n * to / rate), abs=1 if rate in (44101, 12345) else 0)
    assert y.abs().max() <= .75
    if n > 100: torch.testing.assert_close(y, resample(torch.from_numpy(sweep(n, rate)), rate, to), atol=.02, rtol=0)

@pytest.mark.parametrize('rate', [8000, 44100, 44101, 192000])
def test_resampling_keeps_pitch(rate):
    sine = lambda r: torch.sin(2*math.pi * 440 * torch.arange(r) / r)
    torch.testing.assert_close(resample(sine(rate), rate, 16000)[200:15800], sine(16000)[200:15800], atol=.01, rtol=0)

def test_channels_are_averaged():
    x = noise(8, 4000)
    for a in (x, x.T.contiguous()): torch.testing.assert_close(as_mono(a), x.mean(0))
    assert as_mono(np.array([-32768, 32767], np.int16)).tolist() == [-1, 1]
    assert as_mono(np.array([128], np.uint8)).abs().max() < .01
    assert as_mono(sweep(50, 8000)[::-1]).shape == (50,)  # negative strides

@pytest.mark.parametrize('wav, rate, why', [
    ([], 16000, 'empty'), (np.zeros((0, 2)), 16000, 'empty'), ([0., math.nan], 16000, 'NaN'), ([math.inf], 16000, 'NaN'),
    (np.zeros((2, 2, 2)), 16000, '3 axes'), (np.array([1, 2]), 16000, 'int64'), (np.array([True]), 16000, 'bool'),
    (np.array([1j]), 16000, 'complex'), (np.array([3e4, 1.]), 16000, 'full scale'), (['a'], 16000, 'no array'),
    (np.zeros(9), 0, '1000 to 768000'), (np.zeros(9), -1, '1000'), (np.zeros(9), 16000.5, 'true sample rate'), (np.zeros(9), None, 'pass rate')])
def test_bad_arrays(wav, rate, why):
    with pytest.raises(ValueError, match=why) as e: load_sound(wav, rate)
    assert '\n' not in str(e.value)

@pytest.fixture
def write(tmp_path):
    def f(name, x, rate=16000, **kw):
        sf.write(tmp_path/name, x, rate, **kw)
        return tmp_path/name
    return f

@pytest.mark.parametrize('name, kw, tol', [
    ('a.wav', {}, 1e-4), ('a.wav', dict(subtype='PCM_32'), 1e-6), ('a.wav', dict(subtype='FLOAT'), 1e-6), ('a.wav', dict(subtype='PCM_U8'), .02),
    ('a.wav', dict(subtype='ULAW'), .05), ('a.flac', {}, 1e-4), ('a.ogg', {}, .1), ('a.mp3', {}, .1), ('a.aiff', {}, 1e-4)])
@pytest.mark.parametrize('channels', [1, 2])
def test_files(write, name, kw, tol, channels):
    x = sweep(9000, 16000)
    path = write(name, np.stack([x] * channels, 1), **kw)
    for source in (path, str(path), path.read_bytes()):
        y = load_sound(source)
        assert len(y) == 9000 and (y - torch.from_numpy(x)).abs()[500:-500].max() < tol

@pytest.mark.parametrize('rate, channels', [(44100, 1), (192000, 8), (8000, 2), (16000, 1), (44101, 1)])
@pytest.mark.parametrize('seconds', [.1, .37, 30.])
def test_pieces_joined_are_the_whole(write, rate, channels, seconds):
    x = noise(rate * 7 // 5 + 13, channels).numpy()
    path = write('a.wav', x, rate, subtype='FLOAT')
    pieces = list(sound_pieces(path, seconds=seconds))
    whole = resample(as_mono(x), rate, 16000)
    torch.testing.assert_close(torch.cat(pieces), whole, atol=2e-6, rtol=0)
    assert all(len(p) == round(seconds * 16000) for p in pieces[:-1]) and len(pieces[-1]) <= round(seconds * 16000)
    torch.testing.assert_close(load_sound(path), whole, atol=2e-6, rtol=0)

def three_hours(path, rate=8000, channels=1):
    "A WAV of silence that takes no room on disk."
    n = 3 * 3600 * rate * channels
    head = struct.pack('<4sI4s4sIHHIIHH4sI', b'RIFF', n + 36, b'WAVE', b'fmt ', 16, 7, channels, rate, rate*channels, channels, 8, b'data', n)
    with open(path, 'wb') as f: f.write(head); f.truncate(44 + n)
    return path

def test_three_hours(tmp_path):
    path = three_hours(tmp_path/'lecture.wav', 192000 // 8)
    with pytest.raises(ValueError, match='lecture.wav is longer than 3600 s: read it with sound_pieces'): load_sound(path)
    it = sound_pieces(path)
    assert [len(next(it)) for _ in range(3)] == [480000] * 3

def test_blocks_are_small(tmp_path, monkeypatch):
    "However long a file is, no array in between is: the largest resampled block, of eight channels."
    path, sizes, real = tmp_path/'a.wav', [], AF.resample
    sf.write(path, np.zeros((3_000_000, 8), np.int16), 192000)
    monkeypatch.setattr('omni_lite.audio.mel.AF.resample', lambda x, *a: (sizes.append(x.numel()), real(x, *a))[1])
    list(sound_pieces(path, seconds=.5))
    assert len(sizes) > 10 and max(sizes) < 300_000

def test_a_silent_and_a_clipped_file_are_heard(write):
    for x, why in [(np.zeros(8000), 'silent'), (np.clip(4 * sweep(8000, 16000), -1, 1), 'clipped'), (sweep(8000, 16000), None)]:
        y = load_sound(write('a.wav', x))
        assert whisper_mel(y).isfinite().all() and voice_mel(y).isfinite().all()
        notes = sound_notes(y, 'a.wav')
        assert (why is None and notes == []) or (why in notes[0] and 'a.wav' in notes[0])

@pytest.mark.parametrize('name, cut', [('a.wav', .5), ('a.wav', .9), ('a.flac', .5), ('a.mp3', .5), ('a.ogg', .5)])
def test_truncated_files(write, name, cut):
    whole = write(name, noise(32000, 2).numpy()).read_bytes()
    path = write(name, np.zeros(9)); path.write_bytes(whole[:int(len(whole) * cut)])
    with pytest.raises(ValueError, match=r'^a\.\w+ (is cut off|is damaged|holds no sound)[^\n]*$'): load_sound(path)

def test_a_stream_with_an_endless_header_is_no_truncation(write):
    b = bytearray(write('a.wav', noise(8000).numpy()).read_bytes())
    at = b.index(b'data') + 4
    for size in (0xFFFFFFFF, 0x7FFFFFFF): b[at:at + 4] = struct.pack('<I', size); assert len(load_sound(bytes(b))) == 8000

def test_mislabelled_files(write, tmp_path):
    wav, mp3 = write('a.wav', noise(16000).numpy()), write('b.mp3', noise(16000).numpy())
    for src, name in [(wav, 'x.mp3'), (mp3, 'x.wav'), (wav, 'x.raw'), (wav, 'x')]:
        (tmp_path/name).write_bytes(src.read_bytes())
        assert len(load_sound(tmp_path/name)) == 16000
    for name, text in [('page.wav', b'<html>not found</html>' * 50), ('data.flac', np.random.default_rng(0).bytes(5000)), ('note.txt', b'hello'), ('a.png', b'\x89PNG\r\n\x1a\n' + bytes(99))]:
        (tmp_path/name).write_bytes(text)
        with pytest.raises(ValueError, match=rf'^{name} (holds no sound that can be read: save it as wav|is damaged)[^\n]*$'): load_sound(tmp_path/name)

@pytest.mark.parametrize('n', [0, 1, 399])
def test_a_file_shorter_than_a_window(write, n):
    with pytest.raises(ValueError, match=f'a.wav holds {n} samples'): load_sound(write('a.wav', np.zeros(n)))
    if n: assert pad_tokens(load_sound(np.zeros(n), 16000)).shape == (1280,)  # an array of the same length is a short sound

def test_bad_files(write, tmp_path):
    (tmp_path/'no.wav').touch()
    with pytest.raises(ValueError, match='no.wav is an empty file'): load_sound(tmp_path/'no.wav')
    with pytest.raises(ValueError, match='there is no file .*gone.wav'): load_sound(tmp_path/'gone.wav')
    with pytest.raises(ValueError, match='there is no file'): load_sound(tmp_path)
    with pytest.raises(ValueError, match='the sound is an empty file'): load_sound(b'')
    x = np.zeros(9000, np.float32); x[3] = np.nan
    with pytest.raises(ValueError, match='a.wav holds NaN or infinity'): load_sound(write('a.wav', x, subtype='FLOAT'))
    with pytest.raises(ValueError, match='slow.wav claims 50 samples a second'): load_sound(write('slow.wav', np.zeros(900), 50))
    with pytest.raises(ValueError, match='longer than 1 s'): load_sound(write('a.wav', np.zeros(17000)), max_seconds=1)

@pytest.mark.parametrize('kind, codec, rate', [('mp4', 'aac', 44100), ('webm', 'libopus', 48000), ('mov', 'pcm_s16le', 8000)])
def test_films(tmp_path, kind, codec, rate):
    import av
    x, path = np.tile(sweep(rate, rate), (2, 1)), tmp_path/f'film.{kind}'
    with av.open(path, 'w') as c:
        s = c.add_stream(codec, rate=rate, layout='stereo')
        frame = av.AudioFrame.from_ndarray((x.T.reshape(1, -1) * 32767).astype(np.int16).copy(), 's16', 'stereo'); frame.rate = rate
        for p in s.encode(frame): c.mux(p)
        for p in s.encode(None): c.mux(p)
    for source in (path, path.read_bytes()):
        y = load_sound(source)
        assert abs(len(y) - 16000) < 2100 and .3 < y.abs().max() < .75

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_on_cuda():
    x = noise(16000)
    for f in (whisper_mel, voice_mel, lambda w: resample(w, 24000, 16000)):
        torch.testing.assert_close(f(x.cuda()).cpu(), f(x), atol=1e-3, rtol=0)
