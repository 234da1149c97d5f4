"""Speech store, alignment and augmentation without any downloaded voice: a formula speaks."""
import json, pickle
import numpy as np
import pytest
import torch
from omni_lite.data import speech as S
from omni_lite.data.outside import outside


def beeper(text, voice='heart', speed=1., seed=0):
    "A stand-in voice: each word is a beep of 0.2 s whose pitch depends on its length."
    rng, words, waves = np.random.default_rng(seed), text.split(), []
    if 'BROKEN' in words: raise ValueError('this text cannot be spoken: take another')
    for w in words: waves.append(np.sin(2*np.pi*100*(1 + len(w))*np.arange(4800)/24000))
    wav = .2*np.concatenate(waves) + 1e-4*rng.standard_normal(4800*len(words))
    marks = [(w, .2*i, .2*i + .2) for i, w in enumerate(words)]
    return S.Utterance(text, wav.astype(np.float32), voice, marks, [('ɑ', a, b) for _, a, b in marks],
                       np.full(len(wav)//300, 150., np.float32))


def slow_crash(text, voice='heart', speed=1., seed=0):
    "Fails on one text with an error that is no ValueError, as a killed process would."
    if text == 'crash': raise RuntimeError('killed')
    return beeper(text, voice, speed, seed)


LINES = [dict(text=t, voice=v, kind='sentence', augment=a) for t in ('one two', 'a small house', 'yes')
         for v, a in (('heart', False), ('deep', True), ('kid', True))]


def files(folder): return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


# ---- alignment

def test_align_keeps_order_and_covers_speech():
    rng = np.random.default_rng(0)
    for _ in range(50):
        sy = ''.join(rng.choice(list('æbkˈː ,ɪ'), 20))
        marks = S.align(sy, rng.integers(1, 5, 22))
        times = [t for _, a, b in marks for t in (a, b)]
        assert times == sorted(times)
        assert ''.join(m[0] for m in marks) == ''.join(c for c in sy if c in 'æbkɪ')


def test_stress_goes_to_the_vowel_and_space_is_shared():
    marks = S.align('bˈæ kæ', np.array([2, 2, 1, 3, 2, 2, 2, 2]), lead=0)
    u = S.UNIT
    assert [m[0] for m in marks] == ['b', 'æ', 'k', 'æ']
    np.testing.assert_allclose([m[1:] for m in marks], np.array([[2, 4], [4, 9], [9, 12], [12, 14]])*u - 0, atol=u)
    assert marks[1][2] == marks[2][1]          # no hole inside fluent speech
    comma = S.align('bæ, kæ', np.ones(8), lead=0)
    assert comma[1][2] < comma[2][1]           # but a hole at the comma


@pytest.mark.parametrize('text, symbols, want', [
    ('a cat', 'ɐ kˈæt', ['a', 'cat']), ('Yes, it is!', 'jˈɛs, ɪt ɪz!', ['Yes', 'it', 'is']),
    ('21 cats', 'twˈɛnti wˈʌn kˈæts', None), ('- cat', 'kˈæt', ['cat'])])
def test_words_pair_off_or_are_given_up(text, symbols, want):
    phones = S.align(symbols, np.full(len(symbols) + 2, 3))
    words = S.words_of(text, symbols, phones)
    assert (words and [w for w, _, _ in words]) == want


def test_another_process_maps_the_store_itself(tmp_path):
    store = S.build_speech(LINES, tmp_path, workers=0, progress=False, speaker=beeper)
    sent = pickle.dumps(store)
    assert len(sent) < 500 and pickle.loads(sent).rows == store.rows

def test_labels_cover_every_word_once_and_in_order():
    rng = np.random.default_rng(1)
    for _ in range(50):
        edges = np.sort(rng.uniform(0, 2, 6)); words = [('w', edges[i], edges[i+1]) for i in range(0, 6, 2) if edges[i+1] - edges[i] > .09]
        got = [k for k in S.word_labels(words, 25).tolist() if k >= 0]
        assert set(got) == set(range(len(words))) and got == sorted(got)


# ---- synthesis and voices

def random_heads(num_frames=20):
    g = torch.Generator().manual_seed(0)
    return tuple(torch.randn(601, num_frames, generator=g) - 3 for _ in range(5)), torch.full((num_frames,), 200.)


def test_render_length_and_seed():
    heads, f0 = random_heads()
    a, b, c = (S.render(heads, f0, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert a.shape == (20*300,) and a.dtype == np.float32
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_identity_spec_changes_nothing():
    heads, f0 = random_heads()
    same, g0 = S.change_voice(heads, f0, S.VoiceSpec())
    assert all(torch.allclose(x, y, atol=1e-6) for x, y in zip(heads, same)) and torch.allclose(f0, g0, atol=1e-3)


def test_formants_move_and_pitch_scales():
    heads, f0 = random_heads()
    peak = torch.zeros(601, 20); peak[100] = 5.
    moved, g0 = S.change_voice((peak,)*5, f0, S.VoiceSpec(1.5, 1.2))
    assert moved[0].argmax(0).unique().item() == 120
    assert torch.allclose(g0, f0*1.5, atol=1e-2)


def test_unvoiced_stays_unvoiced():
    heads, f0 = random_heads(); f0 = torch.zeros_like(f0)
    assert S.change_voice(heads, f0, S.HIBARI_VOICES['child'])[1].abs().max() == 0
    assert S.pulse_train(f0).abs().max() == 0


def test_casts_are_split():
    assert S.TEST_VOICES <= set(S.HIBARI_VOICES) | set(S.KOKORO_VOICES)
    assert S.voice_split('heart') == 'train' and S.voice_split('kid') == 'test'
    assert len(set(S.HIBARI_VOICES.values())) == len(S.HIBARI_VOICES)


def test_shipped_voices_load():
    files = S.voice_files()
    assert set(S.KOKORO_VOICES) <= set(files)
    for f in files.values():
        style = S.load_style(f)
        assert style.shape == (S.VOICE_ROWS, 256) and np.isfinite(style).all()


def test_pack_voice_roundtrip(tmp_path):
    style = np.random.default_rng(0).standard_normal((510, 256)).astype(np.float32)
    style.tofile(tmp_path/'af_x.bin')
    packed = S.load_style(S.pack_voice(tmp_path/'af_x.bin', tmp_path))
    np.testing.assert_allclose(packed, style[:S.VOICE_ROWS], atol=2e-3)
    assert packed.nbytes//2 + 1024 > (tmp_path/'af_x.safetensors').stat().st_size


# ---- trimming and augmentation

def test_trim_moves_labels_with_the_sound():
    u = beeper('one two'); n = 12000
    padded = S.replace(u, wav=np.pad(u.wav, (n, n)), words=[(w, a + .5, b + .5) for w, a, b in u.words],
                       phones=None, f0=np.pad(u.f0, (40, 40)))
    t = S.trim(padded)
    assert len(t.wav) == 300*len(t.f0) and t.phones is None
    np.testing.assert_allclose(t.words[1][1] - t.words[0][1], .2, atol=1e-6)
    np.testing.assert_allclose(t.words[0][1], .075, atol=.026)
    a = round(t.words[0][1]*24000)
    assert np.abs(t.wav[a:a+2400]).mean() > .05 > np.abs(t.wav[:a-600]).mean()


@pytest.mark.parametrize('snr', [0., 10., 20.])
@pytest.mark.parametrize('color', ['white', 'pink'])
def test_noise_level_is_what_was_asked(snr, color):
    u = beeper('one two three'); x = .1*u.wav
    y = S.augment(x, np.random.default_rng(0), snr_db=snr, color=color)
    got = 10*np.log10((x**2).mean()/((y - x)**2).mean())
    assert abs(got - snr) < .2


def test_augment_is_deterministic_and_bounded():
    u = beeper('one two three')
    for seed in range(8):
        a, b = (S.augment_utterance(u, np.random.default_rng(seed)) for _ in range(2))
        assert np.array_equal(a.wav, b.wav) and np.abs(a.wav).max() <= 1
        assert all(0 <= s <= e <= a.seconds + 1e-6 for _, s, e in a.words)


def test_babble_is_the_noise():
    u, other = beeper('one two'), beeper('seventeen')
    y = S.augment(u.wav*.1, np.random.default_rng(0), snr_db=0., babble=other.wav)
    rest = y - u.wav*.1
    assert np.corrcoef(rest, np.resize(other.wav, len(rest)))[0, 1] > .999


def test_echo_leaves_length_and_rings_on():
    x = np.zeros(24000, np.float32); x[100] = .5
    y = S.augment(x, np.random.default_rng(0), room=.3)
    assert len(y) == len(x) and (y[2000:5000]**2).sum() > 100*(y[12000:]**2).sum()
    assert (y[200:]**2).sum() > 0


# ---- the store

def test_all_rates_share_one_offset(tmp_path):
    store = S.build_speech(LINES, tmp_path, workers=0, progress=False, part_size=4, speaker=beeper)
    assert len(store) == len(LINES)
    for i in range(len(store)):
        x = store[i]; n = x['row']['n_frames12']
        assert [len(x[k]) for k in S.ARRAYS] == [1920*n, 8*n, 4*n, 4*n, 4*n, n]
        assert x['mel16'].shape[1] == x['mel24'].shape[1] == 80 and np.isfinite(x['mel24'].astype(np.float32)).all()
    clean = store[store.where(text='one two', voice='heart')[0]]
    np.testing.assert_allclose(clean['wav'][:9600]/32767, beeper('one two').wav, atol=2e-3)
    assert clean['word'].tolist() == [0, 0, 0, 1, 1] and set(clean['f0'][:18].tolist()) == {150.}


def test_mels_in_the_store_are_the_mels_of_its_sound(tmp_path):
    from omni_lite.audio.mel import voice_mel
    x = S.build_speech(LINES[:1], tmp_path, workers=0, progress=False, speaker=beeper)[0]
    want = voice_mel(torch.from_numpy(x['wav'].astype(np.float32)/32767)).T.numpy()
    loud = want > -4
    np.testing.assert_allclose(x['mel24'][loud].astype(np.float32), want[loud], atol=.05)


def test_processes_parts_and_reruns_give_the_same_bytes(tmp_path):
    S.build_speech(LINES, tmp_path/'a', workers=0, progress=False, part_size=2, speaker=beeper)
    S.build_speech(LINES, tmp_path/'b', workers=2, progress=False, part_size=2, speaker=beeper)
    assert files(tmp_path/'a') == files(tmp_path/'b')
    before = {p: p.stat().st_mtime_ns for p in (tmp_path/'a').iterdir()}
    S.build_speech(LINES, tmp_path/'a', workers=0, progress=False, part_size=2, speaker=None)  # nothing to speak: no voice is opened
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path/'a').iterdir()}


def test_goes_on_after_a_crash(tmp_path):
    lines = [dict(text=t) for t in ('one', 'two', 'crash', 'three')]
    with pytest.raises(RuntimeError): S.build_speech(lines, tmp_path, workers=0, progress=False, part_size=1, speaker=slow_crash)
    kept = sorted((tmp_path/'parts').glob('0*-*'))
    stamps = [p.stat().st_mtime_ns for p in kept if p.suffix != '.tmp']
    assert len(stamps) == 2 and not (tmp_path/'index.jsonl').exists()
    with pytest.raises(ValueError, match='build_speech'): S.SpeechStore(tmp_path)
    store = S.build_speech(lines, tmp_path, workers=0, progress=False, part_size=1, speaker=beeper)
    assert [r['text'] for r in store.rows] == ['one', 'two', 'crash', 'three'] and not (tmp_path/'parts').exists()


def test_changed_lines_are_built_again(tmp_path):
    S.build_speech(LINES[:2], tmp_path, workers=0, progress=False, speaker=beeper)
    store = S.build_speech(LINES[2:5], tmp_path, workers=0, progress=False, speaker=beeper)
    assert [r['text'] for r in store.rows] == [l['text'] for l in LINES[2:5]]


def test_drops_are_counted_with_the_reason(tmp_path):
    lines = [dict(text='yes'), dict(text='BROKEN'), dict(text=' '.join(['long']*90)), dict(kind='sound', text='hush', wav=np.zeros(0))]
    store = S.build_speech(lines, tmp_path, workers=0, progress=False, speaker=beeper)
    sheet = json.loads((tmp_path/'datasheet.json').read_text())
    assert len(store) == 1 and sum(sheet['dropped'].values()) == 3
    assert {d['id'] for d in sheet['dropped_examples']} == {1, 2, 3}
    assert 'cannot be spoken' in (tmp_path/'datasheet.md').read_text()


def test_sounds_are_known_to_hold_no_speech(tmp_path):
    wav = .3*np.sin(np.arange(5000)/20)
    x = S.build_speech([dict(kind='sound', text='hum', wav=wav, split='train')], tmp_path, workers=0, progress=False)[0]
    assert set(x['phone'].tolist()) == {0} and set(x['word'].tolist()) == {-1} and x['row']['text'] == 'hum'


def test_unknown_alignment_is_marked():
    arrays = S.token_arrays(S.Utterance('hi', np.full(2000, .1, np.float32), 'x'))
    assert set(arrays['phone'].ravel().tolist()) == {255} and set(arrays['word'].tolist()) == {-2}


def test_test_voices_never_train(tmp_path):
    with pytest.raises(ValueError, match='tests only'): S.build_speech([dict(text='a', voice='kid', split='train')], tmp_path)
    store = S.build_speech(LINES, tmp_path, workers=0, progress=False, speaker=beeper)
    assert {r['voice'] for r in store.rows if r['split'] == 'train'}.isdisjoint(S.TEST_VOICES)
    assert {r['voice'] for r in store.rows if r['split'] == 'test'} == {'kid'}


def test_a_torn_store_is_noticed(tmp_path):
    S.build_speech(LINES[:1], tmp_path, workers=0, progress=False, speaker=beeper)
    with open(tmp_path/'f0.f16', 'ab') as f: f.write(b'xx')
    with pytest.raises(ValueError, match='build the store again'): S.SpeechStore(tmp_path)


def test_empty_list_gives_an_empty_store(tmp_path):
    assert len(S.build_speech([], tmp_path, workers=0, progress=False)) == 0


# ---- the speech of a world

@pytest.fixture(scope='module')
def plan():
    from omni_lite.data.world import World
    return World('small'), S.check_lines(S.world_lines(World('small'), 1500, kokoro_minutes=1.))


def test_world_lines_are_the_same_every_time(plan):
    world, lines = plan
    assert lines == S.check_lines(S.world_lines(world, 1500, kokoro_minutes=1.))
    assert [l['text'] for l in lines] != [l['text'] for l in S.world_lines(world, 1500, seed=1)]


def test_world_lines_keep_the_splits(plan):
    world, lines = plan
    asked = [l for l in lines if 'family' in l]
    for l in asked:
        s = world.sample(l['family'], l['split'], l['sample_seed'])
        assert world.held_out(s.facts[0]) == (l['split'] == 'test')
        assert l['text'] == (s.question if l['kind'] == 'question' else s.answer)
    assert {l['voice'] for l in lines if l['split'] == 'train'}.isdisjoint(S.TEST_VOICES)
    assert {l['voice'] for l in lines if l['split'] == 'test' and l['kind'] in ('question', 'outside')} <= S.TEST_VOICES
    assert {l['split'] for l in asked} == {'train', 'test'}
    beyond = [l for l in lines if l['kind'] == 'outside']
    assert {l['split'] for l in beyond} == {'train', 'test'}
    assert all(l['text'] == outside(world, l['split'], l['sample_seed']).question for l in beyond)


def test_answers_are_clean_and_in_the_output_voice(plan):
    answers = [l for l in plan[1] if l['kind'] == 'answer']
    assert {(l['voice'], bool(l.get('augment'))) for l in answers} == {('heart', False)}


def test_every_word_is_heard_alone_and_kokoro_keeps_to_its_minutes(plan):
    world, lines = plan
    assert {l['text'] for l in lines if l['kind'] == 'word'} == world.words
    slow = [l for l in lines if l['voice'] in S.KOKORO_VOICES]
    assert 10 < len(slow) < 60 and {l['kind'] for l in slow} <= {'question', 'outside'}


def test_world_sounds_are_built_from_their_spec(plan, tmp_path):
    from omni_lite.data.sounds import render_sound
    line = next(l for l in plan[1] if l['kind'] == 'sound') | dict(augment=False)
    x = S.build_speech([line], tmp_path, workers=0, progress=False)[0]
    want = render_sound(line['sound'], 24000)
    np.testing.assert_allclose(x['wav'][:len(want)]/32767, want, atol=1e-4)
    assert x['row']['sound'] == line['sound']
