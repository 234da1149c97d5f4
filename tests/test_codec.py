"""`omni-lite codec` and the codec's report: files there and back, bad input, the page, a short training run.

Weights are random and tiny, clips are synthetic, the recogniser is a function of the test."""
import json, re, subprocess, sys
from pathlib import Path
import numpy as np
import pytest
import soundfile as sf
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.torch import load_file, save_file
from made import Page, beeps
from omni_lite import cli
from omni_lite.codec_cli import CODES, add_commands, codec_stages, train_codec
from omni_lite.audio.mel import load_sound
from omni_lite.config import preset
from omni_lite.evaluate import codec as E, codec_page as P
from omni_lite.omni.codec import books_hash, decode_file, encode_file, load_codec, read_codes, whole
from omni_lite.omni.voice import Voice
from omni_lite.omni.model import OmniForCausalLM

if not any(g.name == 'codec' for g in cli.app.registered_groups): add_commands(cli.app, cli.parse_budget)

def run(capsys, *args):
    with pytest.raises(SystemExit) as end: cli.main([str(a) for a in args])
    return end.value.code, *capsys.readouterr()

def refused(capsys, says, *args):
    "Exit code 2 and one sentence, which is returned."
    code, out, err = run(capsys, *args)
    assert code == 2 and err.startswith('omni-lite: ') and err.count('\n') == 1 and 'Traceback' not in err, err
    assert says in err, err
    return err

def random_model(seed=0):
    torch.manual_seed(seed)
    return OmniForCausalLM(preset('tiny')).eval()

def voice(seconds=1., rate=24000, seed=0):
    "A buzz with a slow melody and a little breath."
    rng, t = np.random.default_rng(seed), np.arange(round(seconds*rate))/rate
    phase = 2*np.pi*np.cumsum(140 + 40*np.sin(2*np.pi*1.5*t))/rate
    wav = sum(np.sin(k*phase)/k for k in range(1, 9))*(.6 + .4*np.sin(2*np.pi*3*t))
    return (.1*wav + .002*rng.standard_normal(len(t))).astype(np.float32)

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp('model')
    random_model().save_pretrained(folder, half=False)
    return folder

@pytest.fixture(scope='module')
def model(home): return load_codec(home)

@pytest.fixture
def wav(tmp_path):
    sf.write(tmp_path/'a.wav', voice(1.3), 24000)
    return tmp_path/'a.wav'

@pytest.fixture
def codes(model, wav):
    encode_file(model, wav, wav.with_suffix(CODES), note='a note')
    return wav.with_suffix(CODES)

# ---- there and back

def test_there_and_back_by_command(capsys, home, wav):
    assert run(capsys, 'codec', 'encode', wav, '--model', home, '--note', 'hello')[0] == 0
    code, out, _ = run(capsys, 'codec', 'decode', wav.with_suffix(CODES), '--model', home)
    made, rate = sf.read(wav.with_name('a.decoded.wav'))
    assert code == 0 and 'a.decoded.wav' in out and rate == 24000 and len(made) == round(1.3*24000)
    assert sorted(p.name for p in wav.parent.iterdir()) == ['a.codes.safetensors', 'a.decoded.wav', 'a.wav']
    assert read_codes(wav.with_suffix(CODES))[1]['note'] == 'hello'

def test_file_holds_what_the_tokenizer_says(model, wav, codes):
    got, about = read_codes(codes, model)
    assert torch.equal(got, model.tokenizer.encode(load_sound(wav)))
    assert load_file(codes)['codes'].dtype == torch.int16
    assert about['books'] == books_hash(model) and about['sizes'] == ' '.join(['16']*8) and about['samples'] == str(round(1.3*16000))

def test_books_name_the_codebooks_alone(model):
    other = random_model()
    assert books_hash(other) == books_hash(model)
    with torch.no_grad(): next(other.vocoder.parameters()).add_(1)
    assert books_hash(other) == books_hash(model)
    other.tokenizer.rvq.books[3].embed[0, 0] += 1e-3
    assert books_hash(other) != books_hash(model)

@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(9, 60000), rate=st.sampled_from([8000, 16000, 22050, 44100, 192000]), channels=st.integers(1, 8),
       kind=st.sampled_from(['PCM_16', 'FLOAT']), k=st.integers(1, 8))
def test_any_length_rate_and_channels(model, tmp_path, n, rate, channels, kind, k):
    x = np.random.default_rng(n).uniform(-1.2, 1.2, (n, channels))
    sf.write(tmp_path/'x.wav', x, rate, kind)
    got = encode_file(model, tmp_path/'x.wav', tmp_path/'x.st', k)
    n16 = -(-n*16000 // rate)
    assert got['frames'] == max(1, -(-n16 // 1280)) and got['levels'] == k and got['bps'] == pytest.approx(12.5*4*k)
    assert decode_file(model, tmp_path/'x.st', tmp_path/'y.wav', flow=False)['frames'] == got['frames']
    y = sf.read(tmp_path/'y.wav')[0]
    assert len(y) == round(n16*1.5) and np.isfinite(y).all()

@pytest.mark.parametrize('flow', [True, False])
def test_pieces_equal_the_whole(model, tmp_path, flow):
    "A file of several pieces sounds as if it had been decoded at once."
    sf.write(tmp_path/'x.wav', voice(5.2), 24000)
    encode_file(model, tmp_path/'x.wav', tmp_path/'x.st')
    decode_file(model, tmp_path/'x.st', tmp_path/'y.wav', flow=flow, seed=3)
    whole = Voice(model, 3, flow).push(read_codes(tmp_path/'x.st')[0], True)
    y = sf.read(tmp_path/'y.wav', dtype='float32')[0]
    assert len(y) == round(5.2*24000) and np.abs(y - whole[:len(y)]).max() < 2e-3

def test_first_levels(model, wav, codes, tmp_path):
    "Leaving levels out when writing or when reading is the same."
    encode_file(model, wav, tmp_path/'k', 3)
    a, b = (tmp_path/'1.wav', tmp_path/'2.wav')
    decode_file(model, codes, a, levels=3); decode_file(model, tmp_path/'k', b)
    assert a.read_bytes() == b.read_bytes()
    decode_file(model, codes, b, levels=4)
    assert a.read_bytes() != b.read_bytes()

@pytest.mark.parametrize('x', [np.ones(1)*.3, np.zeros(9000), np.ones(9000)], ids=['one sample', 'silent', 'clipped'])
def test_odd_but_whole_sounds(model, tmp_path, x):
    sf.write(tmp_path/'x.wav', x, 16000)
    assert encode_file(model, tmp_path/'x.wav', tmp_path/'x.st')['frames'] == -(-len(x) // 1280)
    decode_file(model, tmp_path/'x.st', tmp_path/'y.wav')
    y = sf.read(tmp_path/'y.wav')[0]
    assert len(y) == round(len(x)*1.5) and np.isfinite(y).all()

# ---- what is broken is named

def change(path, **about):
    "A file of codes with other codes or texts."
    from safetensors import safe_open
    with safe_open(str(path), 'pt') as f: kept, x = f.metadata(), f.get_tensor('codes')
    x = about.pop('codes', lambda c: c)(x)
    save_file(dict(codes=x.contiguous()), path, {k: v for k, v in (kept | about).items() if v is not None})

@pytest.mark.parametrize('how,says', [
    (dict(codes=lambda c: c + 16), 'a code outside 0 to 15 in level 1'),
    (dict(codes=lambda c: torch.where(torch.arange(8) == 5, -1, c).short()), 'in level 6'),
    (dict(codes=lambda c: torch.cat([c, c], 1)), '16 levels, this codec 8'),
    (dict(codes=lambda c: c[:, :0]), 'levels'),
    (dict(codes=lambda c: c[:0]), 'int16 (frames, levels)'),
    (dict(codes=lambda c: c.float()), 'torch.float32'),
    (dict(codes=lambda c: c[0]), 'int16 (frames, levels)'),
    (dict(books='0'*16), 'name the checkpoint that wrote it with --model'),
    (dict(books=None), 'an unknown model'),
    (dict(format='something'), 'not one of codes'),
    (dict(samples='-5'), 'how long'),
])
def test_bad_codes(capsys, home, codes, how, says):
    change(codes, **how)
    err = refused(capsys, says, 'codec', 'decode', codes, '--model', home)
    assert codes.name in err
    assert {p.name for p in codes.parent.iterdir()} == {'a.wav', codes.name}

def test_codes_of_another_model(capsys, codes, tmp_path):
    random_model(7).save_pretrained(tmp_path/'other')
    refused(capsys, 'was written with the codebooks', 'codec', 'decode', codes, '--model', tmp_path/'other')

@pytest.mark.parametrize('data', [b'', b'not codes', b'\x10\0\0\0\0\0\0\0{"codes":', 'cut'])
def test_no_file_of_codes(capsys, home, codes, data):
    codes.write_bytes(codes.read_bytes()[:-7] if data == 'cut' else data)
    assert codes.name in refused(capsys, 'no file of codes', 'codec', 'decode', codes, '--model', home)

def test_levels_that_are_not_there(capsys, home, wav, codes):
    refused(capsys, '1 to 8', 'codec', 'encode', wav, '--levels', 9, '--model', home)
    refused(capsys, '1 to 8', 'codec', 'decode', codes, '--levels', 9, '--model', home)

def bad_sounds(folder):
    sf.write(folder/'none.wav', np.zeros((0, 1), np.float32), 16000)
    sf.write(folder/'nan.wav', np.where(np.arange(5000) == 4000, np.nan, 0).astype(np.float32), 16000, 'FLOAT')
    sf.write(folder/'cut.flac', voice(3), 24000)
    (folder/'cut.flac').write_bytes((folder/'cut.flac').read_bytes()[:-20000])
    (folder/'empty.mp3').write_bytes(b'')
    (folder/'text.wav').write_text('these are words, no sound\n'*20)
    (folder/'riff.wav').write_bytes(b'RIFF\x24\0\0\0WAVEfmt ')

@pytest.mark.parametrize('name', ['none.wav', 'nan.wav', 'cut.flac', 'empty.mp3', 'text.wav', 'riff.wav', 'absent.wav', '.'])
def test_bad_sound(capsys, home, tmp_path, name):
    bad_sounds(tmp_path)
    before = sorted(tmp_path.iterdir())
    refused(capsys, name if name != '.' else str(tmp_path), 'codec', 'encode', tmp_path/name, '--model', home)
    assert sorted(tmp_path.iterdir()) == before

@pytest.mark.parametrize('wrong', ['a.wav', 'sub', 'sub/b.codes'])
def test_outputs_that_cannot_be(capsys, home, wav, wrong):
    (wav.parent/'sub').write_text('a file')
    refused(capsys, 'name another', 'codec', 'encode', wav, '--out', wav.parent/wrong if wrong != 'sub' else wav.parent/'sub'/'x', '--model', home)
    assert len(sf.read(wav)[0]) == round(1.3*24000)

def test_whole_or_not_at_all(tmp_path):
    (tmp_path/'f').write_text('old')
    with pytest.raises(RuntimeError), whole(tmp_path/'f') as part:
        part.write_text('half'); raise RuntimeError('power cut')
    assert [p.name for p in tmp_path.iterdir()] == ['f'] and (tmp_path/'f').read_text() == 'old'

def test_mislabelled_sound_is_read_by_content(model, tmp_path):
    sf.write(tmp_path/'x.wav', voice(.5), 24000)
    (tmp_path/'x.wav').rename(tmp_path/'x.mp3')
    assert encode_file(model, tmp_path/'x.mp3', tmp_path/'x')['frames'] == 7

# ---- checkpoints that do not fit

@pytest.mark.parametrize('change,says', [
    (lambda t: t.pop('tokenizer.rvq.books.0.embed'), 'lacks tokenizer.rvq.books.0.embed'),
    (lambda t: t.update(more=torch.zeros(1)), 'has an unknown more'),
    (lambda t: t.update({'flow.to_mel.weight': torch.zeros(3, 3)}), 'flow.to_mel.weight of shape (3, 3)'),
])
def test_weights_that_do_not_fit(capsys, wav, tmp_path, change, says):
    random_model().save_pretrained(tmp_path/'m')
    tensors = load_file(tmp_path/'m'/'codec.safetensors'); change(tensors)
    save_file(tensors, tmp_path/'m'/'codec.safetensors')
    assert 'codec.safetensors' in refused(capsys, says, 'codec', 'encode', wav, '--model', tmp_path/'m')

def test_broken_checkpoints(capsys, wav, tmp_path):
    random_model().save_pretrained(tmp_path/'m')
    ask = lambda says: refused(capsys, says, 'codec', 'encode', wav, '--model', tmp_path/'m')
    weights, config = (tmp_path/'m'/n for n in ('codec.safetensors', 'config.json'))
    weights.write_bytes(weights.read_bytes()[:-100]); ask('cut short')
    weights.unlink(); ask('does not exist')
    config.write_text('{"name": "x", "audio": {"width": 1}}'); ask('config of this version')
    config.unlink(); ask('no config.json')
    refused(capsys, 'no checkpoint lies in', 'codec', 'encode', wav, '--model', tmp_path/'nothing')

def test_only_the_codec_is_read(home, model):
    assert not list(model.llm.parameters())
    assert torch.equal(model.tokenizer.encode(torch.from_numpy(voice(1, 16000))),
                       random_model().tokenizer.encode(torch.from_numpy(voice(1, 16000))))

# ---- the report

def folder_of(tmp_path, texts=('one two three', None)):
    for i, t in enumerate(texts):
        sf.write(tmp_path/f'{i}.wav', voice(1 + .2*i, seed=i), 24000)
        if t is not None: (tmp_path/f'{i}.txt').write_text(t)
    return tmp_path

def perfect(wav, rate): return 'one two three'

@pytest.fixture(scope='module')
def reported(model, tmp_path_factory):
    tmp = tmp_path_factory.mktemp('report')
    clips = E.folder_clips(folder_of(tmp, ('one two three', None, '<script>alert(1)</script> & more')))
    card = E.codec_report(model, clips, tmp/'out', (1, 8, 99), (), perfect, [voice(4, seed=9)], 'a folder', Path('m'), False)
    return card, tmp/'out'

def test_report_rows(reported, model):
    card, _ = reported
    names = [r['way'] for r in card['rows'] if 'Codec2' not in r['way']]
    assert names == ['original', 'vocoder on the true mel', 'Griffin-Lim on the true mel', 'Opus, 6 kbit/s', '1 level, flow',
                     '8 levels, flow', '1 level, mel decoder', '8 levels, mel decoder']
    rows = {r['way']: r for r in card['rows']}
    assert rows['original']['mel'] is None and 'rtf' not in rows['original']
    assert rows['Griffin-Lim on the true mel']['mel'] < rows['8 levels, flow']['mel']
    assert abs(rows['Opus, 6 kbit/s']['bps'] - 6000) < 500
    assert rows['8 levels, flow']['bps'] == pytest.approx(model.cfg.audio.bits_per_second)
    assert all(0 < r['rtf'] for r in card['rows'][1:]) and all(r['n'] == 3 for r in card['rows'])

def test_report_words(reported):
    "The first text is heard right, the third wrong; the second is unknown."
    card, _ = reported
    for r in card['rows']: assert r['wer'] == pytest.approx(4/8) and r['wer_low'] <= r['wer'] <= r['wer_high']

def test_report_usage_counts_more_than_the_clips(reported, model):
    card, _ = reported
    assert card['frames'] == sum(-(-round(s*16000) // 1280) for s in (1, 1.2, 1.4, 4))
    assert [u['level'] for u in card['usage']] == list(range(1, 9))
    for r in card['rows']:
        if 'levels' in r: assert 0 <= r['entropy_bps'] <= r['bps'] + 1e-6

def test_report_files(reported):
    card, out = reported
    assert sorted(p.name for p in out.iterdir()) == ['codec.html', 'codec.json', 'codec.md']
    assert json.loads((out/'codec.json').read_text()) == json.loads(json.dumps(card))
    md = (out/'codec.md').read_text()
    for r in card['rows'] + card['quoted']: assert r['way'] in md
    assert '50.0 %' in md and 'arXiv 2502.04128' in md and 'arXiv 2502.17239' in md

def test_page_loads_nothing_and_plays_everything(reported):
    card, out = reported
    page = Page((out/'codec.html').read_text())
    assert page.count('audio') == 3*len(card['rows']) and page.count('img') == 1
    assert '<script>alert(1)</script> & more'[:40] in page.data
    assert (out/'codec.html').stat().st_size < 5e6

def test_players_fit_a_budget(model, tmp_path):
    import base64
    n, s = P.fitting([30., 30.], 15)
    assert n >= 1 and s >= 2 and n*15*s*32000*4/3 <= 3.5e6 + 1
    clip = E.Clip('x', voice(8), 'x')
    card = dict(about='', about_quoted='', rows=[dict(way='a', levels=1, flow=True, mel=1.)], quoted=P.quoted(), left_out=[], usage=[], frames=1)
    page = Page(P.page(card, {'a': [clip.wav]}, [clip]))
    sound = [a['src'] for t, a in page.tags if t == 'audio'][0]
    assert base64.b64decode(sound.split(',')[1])[:4] == b'RIFF'

def test_quoted_rows_name_their_source():
    rows = P.quoted()
    assert all('arXiv' in r['source'] for r in rows)
    mimi = next(r for r in rows if r['way'] == 'Mimi, 12.5 Hz x 8')
    assert (mimi['wer'], mimi['stoi'], mimi['pesq'], mimi['utmos'], mimi['bps']) == (.0296, .91, 2.25, 3.56, 1100)
    curve = {r['levels']: (r['wer'], r['mel'], r['bps']) for r in rows if 'levels' in r}
    assert curve[8] == (.053, .466, 12.5*86) and curve[1] == (.262, .677, 12.5*13)

@pytest.mark.parametrize('package,name', [('pystoi', 'stoi'), ('pesq', 'pesq'), ('distillmos', 'mos')])
def test_missing_ruler_is_said(monkeypatch, package, name):
    monkeypatch.setitem(sys.modules, package, None)
    have, missing = E.rulers((name,))
    assert list(have) == ['mel'] and len(missing) == 1 and 'left out: pip install' in missing[0] and package in missing[0]

def test_rulers_that_are_there():
    x = voice(2)
    have, _ = E.rulers(('stoi', 'pesq'))
    for name, ruler in have.items():
        same, noisy = ruler(x, x), ruler(x, (x + .05*np.random.default_rng(0).standard_normal(len(x))).astype(np.float32))
        assert (same < noisy) if name == 'mel' else (same > noisy), name
        if name != 'mel': assert np.isnan(v := ruler(0*x[:3000], 0*x[:3000])) or np.isfinite(v)

def test_opinion_is_asked_of_passages_and_of_the_original():
    "Six clips of 2 s are heard as one passage of 8 s and what is left; the other rulers hear each clip."
    heard = {'mos': [], 'mel': []}
    def ruler(name): return lambda truth, made: heard[name].append((len(truth), len(made))) or float(len(heard[name]))
    clips = [E.Clip(str(i), voice(2, seed=i)) for i in range(6)]
    row, _ = E.measure(E.Way('original', lambda w: (w, None)), clips, {k: ruler(k) for k in heard})
    assert heard['mos'] == [(12*24000, 12*24000)] and not heard['mel'] and row['mos'] == 1 and row['mel'] is None
    row, _ = E.measure(E.Way('half', lambda w: (w[:24000], None)), clips, {k: ruler(k) for k in heard})
    assert heard['mos'][1:] == [(12*24000, 12*24000)] and heard['mel'] == [(48000, 48000)]*6 and row['mel'] == 3.5

def test_missing_recogniser_is_said(monkeypatch, model, tmp_path):
    monkeypatch.setitem(sys.modules, 'jiwer', None)
    card = E.codec_report(model, E.folder_clips(folder_of(tmp_path)), tmp_path/'out', (8,), (), progress=False)
    assert any('WER is left out' in s for s in card['left_out']) and not any('wer' in r for r in card['rows'])

def test_recogniser_leaves_the_threads_alone(monkeypatch):
    "The judge's engine sets the number of threads when it is loaded."
    n = torch.get_num_threads()
    monkeypatch.setattr('omni_lite.evaluate.judge.listen', lambda wav, rate=24000: torch.set_num_threads(n + 1) or 'words')
    hear, missing = E.recogniser([E.Clip('a', voice(.5), 'words')])
    assert hear(None) == 'words' and not missing
    torch.set_num_threads(n); E.recogniser([E.Clip('a', voice(.5), 'words')])
    assert torch.get_num_threads() == n

def test_report_by_command(capsys, home, tmp_path):
    code, out, _ = run(capsys, 'codec', 'report', folder_of(tmp_path), '--model', home, '--out', tmp_path/'o', '--levels', '2,1',
                       '--judges', 'none', '--clips', 1)
    assert code == 0 and '| 2 levels, flow' in out and (tmp_path/'o'/'codec.html').is_file()

@pytest.mark.parametrize('args,says', [
    (['--levels', '0'], 'write it like'), (['--levels', 'a'], 'write it like'), (['--judges', 'me'], "no judge 'me'"),
    (['--kind', 'song'], 'answer or question'), (['--world', 'big'], 'small or full'), (['/nowhere'], '/nowhere is not a folder')])
def test_report_asked_wrongly(capsys, args, says): refused(capsys, says, 'codec', 'report', *args)

def test_report_of_bad_folders(capsys, home, tmp_path):
    ask = lambda says, *more: refused(capsys, says, 'codec', 'report', tmp_path, '--model', home, '--judges', 'none', *more)
    ask('no recording lies in')
    sf.write(tmp_path/'short.wav', voice(.1), 24000); ask('short.wav')
    sf.write(tmp_path/'short.wav', voice(70, 8000), 8000); ask('longer than 60 s')
    (tmp_path/'short.wav').write_text('no sound'); ask('short.wav')
    sf.write(tmp_path/'short.wav', voice(.5), 24000); (tmp_path/'file').touch()
    ask('cannot be written to', '--out', tmp_path/'file')

def test_griffin_lim_is_not_late():
    "A click comes back where it was."
    x = np.zeros(24000, np.float32); x[12000:12040] = .5
    y = E.griffin_lim(x)
    centre = (np.arange(24000)*y**2).sum()/(y**2).sum()
    assert len(y) == 24000 and abs(centre - 12020) < 240

def test_opus_is_not_late():
    x = voice(2)
    y = E.same_length(E.opus(x, 32000)[0], len(x))
    lag = np.argmax(np.fft.irfft(np.conj(np.fft.rfft(x, 2*len(x)))*np.fft.rfft(y, 2*len(x))))
    assert min(lag, 2*len(x) - lag) <= 12  # half a millisecond

@pytest.mark.skipif(not E.has_codec2(), reason='the ffmpeg on PATH has no Codec2')
def test_codec2():
    y, bits = E.codec2(voice(2))
    assert abs(bits/2 - 1200) < 100 and abs(len(y) - 48000) < 4000

# ---- training

@pytest.fixture(scope='module')
def store(tmp_path_factory): return beeps(tmp_path_factory.mktemp('store'))

def test_stages_are_those_of_the_recipe():
    rows = codec_stages()
    assert [s.name for s in rows] == ['tokenizer', 'flow', 'vocoder'] and sum(s.share for s in rows) == pytest.approx(1)
    assert not any(m in s.trains for s in rows for m in ('llm', 'eye', 'head'))

def test_train_and_resume(store, tmp_path):
    go = lambda **kw: train_codec(tmp_path/'run', preset='tiny', steps=1, store=store, progress=False, **kw)
    load_codec(go())
    assert {p.name for p in (tmp_path/'run').iterdir()} >= {'run.json', 'state', 'log.jsonl', 'stages.json', 'codec.safetensors', 'config.json'}
    past = json.loads((tmp_path/'run'/'stages.json').read_text())
    assert [s['steps'] for s in past['stages']] == [1, 1, 1] and 'transcript' not in past['stages'][0]['losses']
    before = (tmp_path/'run'/'codec.safetensors').read_bytes()
    go(resume=True)
    assert (tmp_path/'run'/'codec.safetensors').read_bytes() == before  # all stages were done
    with pytest.raises(ValueError, match='--seed 0, not 1'): go(resume=True, seed=1)
    with pytest.raises(FileNotFoundError, match='leave --resume out'): train_codec(tmp_path/'x', resume=True, preset='tiny')

def test_train_with_a_frozen_language_model(store, tmp_path):
    from omni_lite.config import replace
    from omni_lite.text import train_tokenizer
    tok = train_tokenizer(['the red cat is on the left side', 'two dogs and a big ball are here']*20)
    cfg = preset('tiny')
    torch.manual_seed(3)
    full = OmniForCausalLM(replace(cfg, llm=replace(cfg.llm, vocab_size=len(tok))))
    full.save_pretrained(tmp_path/'full', half=False, tok=tok)
    out = train_codec(tmp_path/'run', preset='tiny', steps=1, store=store, progress=False, llm=tmp_path/'full')
    assert 'transcript' in json.loads((out/'stages.json').read_text())['stages'][0]['losses']
    from safetensors.torch import load_file
    state = load_file(sorted((out/'state').iterdir())[-1]/'model.safetensors')
    for k, v in full.llm.state_dict().items(): assert torch.equal(state[f'llm.{k}'], v), k

@pytest.mark.parametrize('args,says', [
    (['--budget', '15'], 'not a budget of time'), (['--llm', '/nowhere'], '/nowhere'), (['--resume', '--out', '/nowhere'], 'nothing to resume'),
    (['--world', 'big'], 'small or full'), (['--preset', '7b'], "the recipe of 7b takes its codec as given")])
def test_train_asked_wrongly(capsys, monkeypatch, tmp_path, args, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('omni_lite.train.trainer.world_store', lambda *a: pytest.fail('built a world before it looked'))
    refused(capsys, says, 'codec', 'train', *args)

# ---- the command line stays quick

def test_commands_import_nothing_heavy():
    heavy = "import sys, omni_lite.codec_cli; print([m for m in ('torch', 'numpy', 'transformers', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', heavy], capture_output=True, text=True, check=True).stdout == '[]\n'

@pytest.mark.parametrize('name', ['encode', 'decode', 'report', 'train'])
def test_help_of_each(capsys, name):
    code, out, err = run(capsys, 'codec', name, '--help')
    assert code == 0 and f'omni-lite codec {name}' in out and not err
