"""Filters on recordings that have one fault each, duplicates through every disguise, and runs that die."""
import json, subprocess, sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import soundfile as sf
import torch
from hypothesis import given, settings, strategies as st

from made import noise as picture
from omni_lite.data import clean as C, shards as S
from omni_lite.data.speech import augment
from omni_lite.fetch import fetched

RATE = 16000

def talk(seed=0, seconds=2., rate=RATE):
    "Something like speech: voiced bursts of moving pitch and timbre, with pauses."
    g = np.random.default_rng(seed); t = np.arange(int(seconds*rate))/rate
    move = lambda a, b, n=9: np.interp(t, np.linspace(0, seconds, n), g.uniform(a, b, n))
    phase = 2*np.pi*np.cumsum(move(90, 220))/rate; at = [move(300, 900), move(900, 2500), move(2400, 3400)]
    x = sum(sum(np.exp(-((k*move(90, 220) - f)/200)**2) for f in at)*np.sin(k*phase) for k in range(1, 25))
    on = np.interp(t, np.linspace(0, seconds, 25), (g.random(25) > .35).astype(float))
    return (.8*x*on/np.abs(x*on).max() + 1e-4*g.standard_normal(len(t))).astype(np.float32)

def write(folder, wavs, rate=RATE, **more):
    "Sounds and their manifest; `more` holds further keys by id."
    for k, w in wavs.items(): sf.write(folder/f'{k}.wav', w, rate)
    rows = [dict(id=k, audio=f'{k}.wav', text=f'this is sentence number {k}', voice='x') | more.get(k, {}) for k in wavs]
    return S.read_manifest(S.write_manifest(rows, folder/'m.jsonl'), strict=True)

def why(out): return {json.loads(l)['id']: json.loads(l)['why'] for l in (out/'dropped.jsonl').read_text().splitlines()}
def kept(out): return [json.loads(l)['id'] for l in (out/'kept.jsonl').read_text().splitlines()]

EASY = C.CleanConfig(language=None)

# ---- single measures

@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.floats(.05, 1.), st.floats(0, 1.), st.floats(0, 1.))
def test_speech_is_found_whatever_surrounds_it(seed, gain, before, behind):
    x = torch.from_numpy(talk(seed)); pad = lambda s: torch.zeros(int(s*RATE))
    inner = C.speech_frames(C.levels(x)).nonzero()[:, 0]; shift = int(before*RATE)/160
    got = C.speech_frames(C.levels(torch.cat([pad(before), gain*x, pad(behind)]))).nonzero()[:, 0]
    near = lambda a, b: abs(a - b - shift) <= 3  # frames of 10 ms; quieter yet, the ends of words fall below `quiet_db`
    assert near(got[0], inner[0]) and near(got[-1], inner[-1])

def test_clicks_and_silence_are_no_speech():
    x = torch.zeros(RATE); assert not C.speech_frames(C.levels(x)).any()
    x[8000:8040] = .9; assert C.speech_frames(C.levels(x)).sum() <= 3
    assert not C.speech_frames(C.levels(1e-4*torch.randn(RATE))).any()

@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.sampled_from([8000, 16000, 44100]))
def test_only_clipped_sounds_are_clipped(seed, rate):
    x = torch.from_numpy(talk(seed, rate=rate)); x = x/x.abs().max()
    assert C.clipped(.9*x) == 0 and C.clipped((6*x).clamp(-.8, .8)) > .005
    assert C.clipped(torch.sin(torch.arange(rate)*2*torch.pi*200/rate)) == 0  # a pure tone has no flat tops
    assert C.clipped(torch.zeros(9)) == 0 and C.clipped(torch.ones(2)) == 0

def test_contrast_is_about_the_ratio_of_speech_to_noise():
    rng = np.random.default_rng(0); got = [C.contrast(C.levels(torch.from_numpy(augment(talk(), rng, RATE, snr_db=s)))) for s in (30, 20, 10, 0)]
    assert got == sorted(got, reverse=True) and got[0] > 20 and got[-1] < C.CleanConfig().min_contrast

def test_languages():
    pytest.importorskip('py3langid')
    for text, l in (('the dog sleeps in the old house', 'en'), ('le chien dort dans la maison', 'fr'),
                    ('der Hund schläft im alten Haus', 'de'), ('猫在房子里睡觉', 'zh'), ('собака спит в доме', 'ru')):
        assert C.language_share(text, l) > C.CleanConfig().min_language and (l == 'en' or C.language_share(text, 'en') < .1)
    assert C.language_share('yes', 'en') is None and C.language_share('21 42 17 99 1000', 'en') is None
    with pytest.raises(ValueError, match="'klingon' is no language"): C.language_share('x'*20, 'klingon')

def test_word_errors():
    pytest.importorskip('jiwer')
    assert C.word_errors('A cat!', 'a cat') == 0 and C.word_errors('a red cat', 'a cat') == pytest.approx(1/3)
    assert C.word_errors('a', 'b c d') == 3 and C.word_errors('', 'a') is None and C.word_errors('a b', '') == 1

# ---- duplicates

DISGUISES = dict(same=lambda x, g: x, soft=lambda x, g: .1*x, late=lambda x, g: x[777:], short=lambda x, g: x[:int(.7*len(x))],
                 noisy=lambda x, g: augment(x, g, RATE, snr_db=30), room=lambda x, g: augment(x, g, RATE, room=.2),
                 int8=lambda x, g: (np.round(x/np.abs(x).max()*127)/127).astype(np.float32))

@pytest.mark.parametrize('how', DISGUISES)
def test_a_copy_is_known_again(how):
    prints, g = C.Prints(), np.random.default_rng(0); limit = C.CleanConfig().max_likeness
    for s in range(5): prints.add(C.fingerprint(torch.from_numpy(talk(s)))[::4])
    for s in range(5): assert prints.likeness(C.fingerprint(torch.from_numpy(DISGUISES[how](talk(s), g)))) > limit, s
    for s in range(20, 30): assert prints.likeness(C.fingerprint(torch.from_numpy(talk(s)))) < limit, s

def test_fingerprint_survives_the_journal():
    bits = C.fingerprint(torch.from_numpy(talk()))[::4]; tools = dict(texts=Counter(), prints=C.Prints())
    C._remember(tools, json.loads(json.dumps(dict(text='k', bits=C._numbers(bits)))))
    assert torch.equal(tools['prints'].kept[0], bits) and tools['texts']['k'] == 1

def test_too_short_for_a_fingerprint():
    assert C.fingerprint(torch.zeros(900)).shape == (0, 32) and C.Prints().likeness(torch.zeros(0, 32, dtype=torch.bool)) == .5

# ---- a run

@pytest.fixture
def dirty(tmp_path):
    good, rng = {f'ok{i}': talk(i) for i in range(4)}, np.random.default_rng(0)
    wavs = good | dict(silence=np.zeros(RATE, np.float32), loud=(30*talk(5)).clip(-.7, .7), hiss=.1*rng.standard_normal(RATE).astype(np.float32),
                       long=np.tile(talk(6), 4), copy=.3*good['ok1'][500:], again=talk(7), bell=.1*rng.standard_normal(RATE).astype(np.float32))
    data = write(tmp_path, wavs, again=dict(text='This is sentence number OK2!'), bell=dict(kind='sound', text='a bell', voice='none'),
                 ok0=dict(words=[['this', .3, .6]]))
    return data

CFG = replace(EASY, max_seconds=5.)
FAULTS = dict(silence='no speech', loud='clipped', hiss='noisy', long='too long', copy='sound twice', again='text twice')

def test_each_fault_has_its_reason(dirty, tmp_path):
    report = C.clean(dirty, tmp_path/'out', CFG, progress=False)
    assert why(tmp_path/'out') == FAULTS and kept(tmp_path/'out') == ['ok0', 'ok1', 'ok2', 'ok3', 'bell']
    assert report['rows'] == 11 and report['kept'] == 5 and report['dropped'] == {k: 1 for k in FAULTS.values()}
    assert report['off'] == {'other words': 'no hear was given', 'poor sound': 'no mos was given'}
    assert json.loads((tmp_path/'out/report.json').read_text()) == report

def test_kept_sounds_are_trimmed_and_labels_moved(dirty, tmp_path):
    C.clean(dirty, tmp_path/'out', CFG, progress=False)
    out = S.read_manifest(tmp_path/'out/kept.jsonl', strict=True)
    x, rate = sf.read(out[0]['audio'], dtype='float32'); old = talk(0)
    assert rate == RATE and len(x)/RATE == pytest.approx(out.rows[0]['seconds'], abs=.002)
    start = next(i for i in range(0, len(old) - len(x) + 1) if np.abs(old[i:i + 400] - x[:400]).max() < 1e-4)
    np.testing.assert_allclose(x, old[start:start + len(x)], atol=1e-4)
    _, a, b = out.rows[0]['words'][0]
    assert a == pytest.approx(max(0, .3 - start/RATE), abs=.002) and b - a <= .3 + 1e-6

def test_scores_say_how_close_it_was(dirty, tmp_path):
    C.clean(dirty, tmp_path/'out', CFG, progress=False)
    rows = [json.loads(l) for f in ('kept', 'dropped') for l in (tmp_path/f'out/{f}.jsonl').read_text().splitlines()]
    for r in rows:
        for f in C.FILTERS:
            if (s := r['scores'].get(f.why)) is not None:
                bad = s < getattr(CFG, f.bound) if f.least else s > getattr(CFG, f.bound)
                assert bad == (r.get('why') == f.why)

def test_the_dear_filters_hear_only_what_the_cheap_ones_kept(dirty, tmp_path):
    pytest.importorskip('jiwer'); heard = []
    def hear(wav, rate): heard.append(len(wav)/rate); return 'this is sentence number ok3' if len(heard) == 4 else 'something else'
    report = C.clean(dirty, tmp_path/'a', CFG, hear=hear, progress=False)
    assert len(heard) == 6  # four, and two whose originals were not kept
    assert kept(tmp_path/'a') == ['ok3', 'bell'] and Counter(why(tmp_path/'a').values())['other words'] == 5
    assert 'other words' not in report['off']
    C.clean(dirty, tmp_path/'b', CFG, mos=lambda wav, rate: 2., progress=False)
    assert kept(tmp_path/'b') == ['bell'] and why(tmp_path/'b')['ok0'] == 'poor sound'

def test_no_opinion_is_no_reason(dirty, tmp_path):
    C.clean(dirty, tmp_path/'out', CFG, mos=lambda w, r: float('nan'), progress=False)
    assert why(tmp_path/'out') == FAULTS

def test_a_filter_of_ones_own(dirty, tmp_path):
    mine = C.Filter('odd name', lambda t: int(t.row['id'][-1] in '13'), 0.)
    C.clean(dirty, tmp_path/'out', CFG, filters=(*C.FILTERS, mine), progress=False)
    assert why(tmp_path/'out')['ok1'] == why(tmp_path/'out')['ok3'] == 'odd name'

def test_none_switches_off(dirty, tmp_path):
    off = C.CleanConfig(*[None if v is None or n.startswith(('m', 'l')) and n != 'margin' else v for n, v in vars(C.CleanConfig()).items()])
    report = C.clean(dirty, tmp_path/'out', off, progress=False)
    assert report['kept'] == 11 and set(report['off']) == {f.why for f in C.FILTERS}

def test_rows_without_sound_and_from_shards(tmp_path):
    picture(40, 40).save(tmp_path/'p.png'); picture(40, 40, 1).save(tmp_path/'q.png'); sf.write(tmp_path/'a.wav', talk(), RATE)
    rows = [dict(id='t', text='a sentence of text'), dict(id='t2', text='A sentence of text.'), dict(id='p', image='p.png', text='a cat'),
            dict(id='q', image='q.png', text='a cat'), dict(id='p2', image='p.png', text='a cat'), dict(id='a', audio='a.wav', text='a cat')]
    data = S.read_manifest(S.write_manifest(rows, tmp_path/'m.jsonl'))
    shards = S.write_shards(data, tmp_path/'s', progress=False)
    for name, d in (('x', data), ('y', shards)):
        C.clean(d, tmp_path/name, EASY, progress=False)
        assert why(tmp_path/name) == {'t2': 'text twice', 'p2': 'text twice'}
        out = S.read_manifest(tmp_path/name/'kept.jsonl', strict=True)
        assert out[1]['image'].read_bytes() == (tmp_path/'p.png').read_bytes()

def test_broken_files_are_counted(dirty, tmp_path):
    (tmp_path/'ok1.wav').write_bytes((tmp_path/'ok1.wav').read_bytes()[:9000]); (tmp_path/'ok2.wav').unlink()
    C.clean(dirty, tmp_path/'out', CFG, progress=False)
    got = why(tmp_path/'out')
    assert got['ok1'] == got['ok2'] == 'broken file' and 'copy' not in got and 'again' not in got  # whose originals are gone
    assert all(json.loads(l)['what'] for l in (tmp_path/'out/dropped.jsonl').read_text().splitlines() if 'broken' in l)

def test_an_endless_file_is_not_read_to_its_end(tmp_path, monkeypatch):
    seen = []
    def blocks():
        for _ in range(10**6): seen.append(1); yield np.full((RATE, 1), .1, np.float32)
    monkeypatch.setattr(C, 'open_sound', lambda f: ('long', RATE, None, blocks()))
    data = S.Manifest([dict(id='a', audio='x.wav')], tmp_path); C.clean(data, tmp_path/'o', EASY, progress=False)
    assert why(tmp_path/'o') == {'a': 'too long'} and len(seen) < 100

# ---- runs that die

FILES = ('kept.jsonl', 'dropped.jsonl', 'report.json', 'journal.jsonl')
def results(out): return {p.relative_to(out): p.read_bytes() for p in sorted(out.rglob('*')) if p.is_file()}

KILLED = '''
import os, sys
from pathlib import Path
from dataclasses import replace
from omni_lite.data import clean as C, shards as S
calls, die = [], int(sys.argv[3])
def mos(wav, rate):
    calls.append(1)
    if len(calls) == die: os.kill(os.getpid(), 9)
    return 4.
C.clean(S.read_manifest(Path(sys.argv[1])), Path(sys.argv[2]), replace(C.CleanConfig(language=None), max_seconds=5.), mos=mos, progress=False)
print(len(calls))
'''

def test_killed_twice_and_resumed_is_as_never_killed(dirty, tmp_path):
    run = lambda die: subprocess.run([sys.executable, '-c', KILLED, str(tmp_path/'m.jsonl'), str(tmp_path/'cut'), str(die)],
                                     capture_output=True, text=True)
    assert run(2).returncode == -9 and not (tmp_path/'cut/kept.jsonl').exists()
    torn = tmp_path/'cut/journal.jsonl'; torn.write_bytes(torn.read_bytes()[:-20])  # the last line is lost as well
    assert run(3).returncode == -9
    last = run(99); assert last.returncode == 0 and int(last.stdout) < 4  # what was judged is not judged again
    C.clean(dirty, tmp_path/'whole', CFG, mos=lambda w, r: 4., progress=False)
    assert results(tmp_path/'cut') == results(tmp_path/'whole')

def test_any_interruption_gives_the_same(dirty, tmp_path):
    C.clean(dirty, tmp_path/'whole', CFG, progress=False); want = results(tmp_path/'whole')
    lines = want[next(p for p in want if p.name == 'journal.jsonl')].splitlines(keepends=True)
    for n in (0, 1, 5, len(lines) - 1):
        (tmp_path/f'c{n}').mkdir(); (tmp_path/f'c{n}/journal.jsonl').write_bytes(b''.join(lines[:n]))
        if n: (tmp_path/f'c{n}/audio').symlink_to(tmp_path/'whole/audio')
        C.clean(dirty, tmp_path/f'c{n}', CFG, progress=False)
        assert {p: (tmp_path/f'c{n}'/p).read_bytes() for p in want} == want

def test_other_thresholds_start_anew(dirty, tmp_path):
    C.clean(dirty, tmp_path/'out', CFG, progress=False)
    C.clean(dirty, tmp_path/'out', replace(CFG, max_seconds=30.), progress=False)
    assert 'long' not in why(tmp_path/'out')

def test_a_full_disk_says_so_and_loses_nothing(dirty, tmp_path, monkeypatch):
    real, n = S.Journal.add, []
    class Full:
        name = 'journal.jsonl'
        def __init__(self, f): self.f = f
        def write(self, s):
            n.append(1)
            if len(n) > 3: raise OSError(28, 'No space left on device')
            return self.f.write(s)
        def flush(self): self.f.flush()
        def close(self): self.f.close()
    init = S.Journal.__init__
    monkeypatch.setattr(S.Journal, '__init__', lambda self, *a: (init(self, *a), setattr(self, 'file', Full(self.file)))[0])
    with pytest.raises(ValueError, match='No space left'): C.clean(dirty, tmp_path/'out', CFG, progress=False)
    monkeypatch.undo()
    C.clean(dirty, tmp_path/'out', CFG, progress=False); C.clean(dirty, tmp_path/'whole', CFG, progress=False)
    assert results(tmp_path/'out') == results(tmp_path/'whole')

@pytest.mark.fetched
@pytest.mark.skipif(fetched('judge') is None or fetched('hibari') is None, reason='needs the judge and hibari')
def test_the_judge_hears_a_wrong_transcript(tmp_path):
    from omni_lite.data.speech import Hibari
    from omni_lite.evaluate.judge import listen
    say = Hibari(); told = dict(right='the dog sleeps in the house', wrong='a red ball is under the table')
    data = write(tmp_path, {'right': say(told['right']).wav, 'wrong': say('who has the yellow key', 'man').wav}, 24000,
                 **{k: dict(text=t) for k, t in told.items()})
    C.clean(data, tmp_path/'out', EASY, hear=listen, progress=False)
    assert why(tmp_path/'out') == {'wrong': 'other words'} and kept(tmp_path/'out') == ['right']
