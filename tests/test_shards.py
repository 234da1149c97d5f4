"""Manifests, shards, streams and the lessons made of them: what is refused, what is counted, and that nothing is lost or moved."""
import io, json, random, subprocess, sys, tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from made import noise, write_clip
from omni_lite.config import preset
from omni_lite.data import own as O, shards as S
from omni_lite.data.interleave import FORMATS
from omni_lite.data.mixture import Ahead, Batches, Mixture
from omni_lite.data.speech import build_speech
from omni_lite.omni.processor import OmniProcessor
from omni_lite.text import train_tokenizer
from test_speech import beeper

WORDS = [['one', 0., .3], ['two', .3, .6], ['three', .6, .9], ['four', .9, 1.1]]

def wave(path, seconds=1.2, seed=0):
    x = .1*np.random.default_rng(seed).standard_normal(int(16000*seconds))
    path.parent.mkdir(parents=True, exist_ok=True); sf.write(path, x, 16000)

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A folder with a manifest whose rows serve every format."
    d = tmp_path_factory.mktemp('rows')
    for i in range(3): wave(d/f'a/{i}.wav', seed=i)
    noise(64, 64).save(d/'p.png'); write_clip(d/'c.mp4', [10, 200, 90], rate=1)
    rows = [dict(id='talk', audio='a/0.wav', text='one two, three four.', words=WORDS, voice='x', licence='CC0', seconds=1.2),
            dict(id='quote', audio='a/1.wav', text='a cat sleeps.', answer='yes.', question='true?', translation='un chat',
                 to='french', answer_audio='a/2.wav'),
            dict(id='seen', image='p.png', text='a cat sleeps. {image} it is red.', question='what?', answer='a cat.'),
            dict(id='film', video='c.mp4', question='where?', answer='left.', text='it goes.'), dict(id='word', text='hello there.')]
    S.write_manifest(rows, d/'m.jsonl')
    return d

@pytest.fixture(scope='module')
def data(home): return S.read_manifest(home/'m.jsonl', strict=True)

@pytest.fixture(scope='module')
def shards(data, home): return S.write_shards(data, home/'shards', num_rows=2, progress=False)

@pytest.fixture(scope='module')
def proc():
    tok = train_tokenizer(['one two three four a cat sleeps it is red hello there left goes what where yes']*5)
    cfg = preset('tiny')
    return OmniProcessor(tok, replace(cfg, llm=replace(cfg.llm, vocab_size=len(tok))))

def listen(wav): # stands in for a tokenizer: loudness picks the code
    n = -(-len(wav)//1280); x = torch.nn.functional.pad(wav, (0, n*1280 - len(wav))).view(n, -1)
    return (x.std(1, keepdim=True)*1000).long().clamp(0, 15).expand(n, 8)

# ---- manifests

BAD = [('{"id": "x"', 'no JSON', 'no JSON'), ('"text"', 'no JSON', 'no JSON object'), (b'\xff\xfe{}', 'no JSON', 'no JSON'),
       ('{"text": 3}', 'wrong type', 'text is 3'), ('{"text": "a", "seconds": -1}', 'wrong type', 'seconds is -1'),
       ('{"text": "a", "seconds": true}', 'wrong type', 'seconds is True'), ('{"text": "a", "seconds": "2"}', 'wrong type', "'2'"),
       ('{"id": 7, "text": "a"}', 'wrong type', 'id is 7'), ('{"voice": "x", "text": " "}', 'empty', 'no text, sound'),
       ('{"audio": "gone.wav"}', 'no file', 'gone.wav is not there'), ('{"audio": "empty.wav"}', 'broken file', 'empty file'),
       ('{"audio": "cut.wav"}', 'broken file', 'cut off'), ('{"image": "text.png"}', 'broken file', 'picture text.png'),
       ('{"video": "ok.wav"}', 'broken file', 'no pictures'), ('{"id": "ok", "text": "again"}', 'id twice', "'ok'")]

@pytest.fixture
def folder(tmp_path):
    wave(tmp_path/'ok.wav'); (tmp_path/'empty.wav').write_bytes(b''); (tmp_path/'text.png').write_text('no picture')
    (tmp_path/'cut.wav').write_bytes((tmp_path/'ok.wav').read_bytes()[:-9000])
    return tmp_path

@pytest.mark.parametrize('line, why, says', BAD, ids=[str(i) for i in range(len(BAD))])
def test_each_bad_row_is_counted_or_named(folder, line, why, says):
    line = line if isinstance(line, bytes) else line.encode()
    (folder/'m.jsonl').write_bytes(b'{"id": "ok", "audio": "ok.wav"}\n\n' + line + b'\n{"id": "last", "text": "x"}\n')
    got = S.read_manifest(folder/'m.jsonl')
    assert [r['id'] for r in got.rows] == ['ok', 'last'] and S.counts(got) == {why: 1} and says in got.drops[0]['what']
    assert str(folder) not in got.drops[0]['what']
    with pytest.raises(ValueError, match='line 3 of m.jsonl'): S.read_manifest(folder/'m.jsonl', strict=True)

def test_nothing_usable(tmp_path):
    (tmp_path/'m.jsonl').write_text('{"audio": "a.wav"}\n{"audio": "b.wav"}')
    with pytest.raises(ValueError, match=r"no row that can be used, \{'no file': 2\}"): S.read_manifest(tmp_path/'m.jsonl')
    with pytest.raises(ValueError, match='there is no manifest'): S.read_manifest(tmp_path/'n.jsonl')

def test_seconds_are_filled_in_and_paths_resolved(data, home):
    assert data.rows[1]['seconds'] == 1.2 and data.rows[3]['seconds'] == 3. and 'seconds' not in data.rows[2]
    assert data[0]['audio'] == home/'a/0.wav' and data.rows[0]['audio'] == 'a/0.wav'

def test_a_manifest_that_fails_leaves_the_old_one(tmp_path):
    S.write_manifest([dict(text='a')], tmp_path/'m.jsonl'); old = (tmp_path/'m.jsonl').read_text()
    with pytest.raises(ValueError, match='no text'): S.write_manifest([dict(text='b'), dict(text='')], tmp_path/'m.jsonl')
    assert (tmp_path/'m.jsonl').read_text() == old and len(list(tmp_path.iterdir())) == 1

ROWS = st.lists(st.dictionaries(st.sampled_from(['voice', 'licence', 'kind', 'note']), st.text(max_size=8), max_size=3), max_size=8)

@settings(max_examples=30, deadline=None)
@given(rows=ROWS)
def test_rows_come_back_as_written(rows, tmp_path_factory):
    rows = [r | dict(id=str(i), text=f'{i} é\u2028x') for i, r in enumerate(rows)] or [dict(id='0', text='a')]
    path = S.write_manifest(rows, tmp_path_factory.mktemp('m')/'m.jsonl')
    assert S.read_manifest(path, strict=True).rows == rows
    s = S.sheet(rows)
    for k in ('licence', 'voice', 'kind'): assert sum(v['rows'] for v in s[k].values()) == s['rows'] == len(rows)

def test_datasheet(data, tmp_path):
    drops = [dict(row=1, why='no file', what='x')]*2 + [dict(row=2, why='empty', what='y')]
    s = S.write_sheet(S.Manifest(data.rows, data.folder, drops=drops), tmp_path)
    assert json.loads((tmp_path/'datasheet.json').read_text()) == s
    assert s['licence'] == {'CC0': dict(rows=1, hours=.0003), 'not stated': dict(rows=4, hours=round(4.2/3600, 4))}
    text = (tmp_path/'datasheet.md').read_text()
    assert '- 2 x no file' in text and '| CC0 | 1 |' in text and s['has'] == dict(text=5, audio=2, answer_audio=1, image=1, video=1)

# ---- shards

def test_shards_hold_the_rows(data, shards):
    assert shards.groups == [2, 2, 1] and len(shards) == 5 and not shards.drops
    for i in range(5):
        a, b = data[i], shards[i]
        assert a.keys() == b.keys()
        for k in a: assert b[k] == (a[k].read_bytes() if k in S.MEDIA else a[k])

def test_the_same_rows_are_the_same_bytes(data, shards, tmp_path):
    again = S.write_shards(data, tmp_path/'s', num_rows=2, progress=False)
    assert [p.read_bytes() for p in again.files] == [p.read_bytes() for p in shards.files]

def test_webdataset_reads_them_in_order(shards, data):
    import webdataset as wds
    seen = list(wds.WebDataset([str(p) for p in shards.files], shardshuffle=False))
    assert [json.loads(s['json'])['id'] for s in seen] == [r['id'] for r in data.rows]
    assert seen[0]['audio.wav'] == data[0]['audio'].read_bytes()

def test_written_whole_or_not_at_all(data, tmp_path, monkeypatch):
    import webdataset as wds
    def full(self, obj): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(wds.ShardWriter, 'write', full)
    with pytest.raises(ValueError, match='No space left'): S.write_shards(data, tmp_path/'s', progress=False)
    assert not list((tmp_path/'s').iterdir())
    monkeypatch.undo(); S.write_shards(data, tmp_path/'s', progress=False)
    with pytest.raises(ValueError, match='holds shards already'): S.write_shards(data, tmp_path/'s', progress=False)

def test_a_file_that_went_away_is_counted(folder, tmp_path):
    wave(folder/'b.wav'); S.write_manifest([dict(id='a', audio='ok.wav'), dict(id='b', audio='b.wav')], folder/'m.jsonl')
    m = S.read_manifest(folder/'m.jsonl'); (folder/'b.wav').unlink()
    out = S.write_shards(m, folder/'s', progress=False)
    assert [r['id'] for r in out.rows] == ['a'] and '1 x no file' in (folder/'s/datasheet.md').read_text()

def tar(path, files):
    with tarfile.open(path, 'w') as t:
        for name, x in files.items(): (i := tarfile.TarInfo(name)).size = len(x); t.addfile(i, io.BytesIO(x))
    return path

def test_bad_shards(tmp_path):
    files = {f'{i}.{e}': x for i in range(3) for e, x in (('txt', b'a cat'), ('wav', bytes(3000)))}
    whole = tar(tmp_path/'a.tar', files).read_bytes()
    assert len(S.Shards([tmp_path/'a.tar'], strict=True)) == 3
    for name, x, rows, says in (('nil', b'', 0, 'empty file'), ('void', bytes(10240), 0, 'holds no rows'), ('junk', b'junk'*999, 0, 'no tar'),
                                ('body', whole[:14*512], 1, 'cut off'), ('head', whole[:10*512], 1, 'cut off'),
                                ('edge', whole[:9*512], 0, 'cut off'),
                                ('hit', whole[:11*512] + b'\1'*512 + whole[12*512:], 1, 'cut off')):
        (p := tmp_path/f'{name}.tar').write_bytes(x)
        got, wrong = S.shard_index(p)
        assert says in wrong, name
        assert len(got) == rows, name
        assert all(len(exts) == 2 for _, exts in got), name  # no row lost a file
        with pytest.raises(ValueError, match=f'{name}.tar: .*{says}'): S.Shards([tmp_path/'a.tar', p], strict=True)
        loose = S.Shards([tmp_path/'a.tar', p])
        assert len(loose) == 3 + len(got) and S.counts(loose) == {'bad shard': 1}
    with pytest.raises(ValueError, match='no row lies in these shards: nil.tar: it is an empty file'): S.Shards([tmp_path/'nil.tar'])
    with pytest.raises(ValueError, match='no shard'): S.Shards(tmp_path/'nowhere')
    with pytest.raises(ValueError, match='there is no shard'): S.Shards([tmp_path/'b.tar'])

def test_shards_of_others(tmp_path):
    tar(tmp_path/'x.tar', {'d/1.txt': b' a cat \n', 'd/1.flac': b'F', 'e/1.jpg': b'J', 'e/1.json': b'{"text": "dog"}', 'e/1.npy': b'?'})
    got = S.Shards(tmp_path)
    assert got[0] == dict(id='d/1', audio=b'F', text='a cat') and got[1] == dict(id='e/1', image=b'J', text='dog')

def test_a_row_whose_file_is_missing_in_the_shard(tmp_path):
    tar(tmp_path/'x.tar', {'1.json': b'{"audio": "audio.wav", "id": "a"}', '2.json': b'{"text": "b", "id": "b"}'})
    with pytest.raises(S.BadRow, match='no audio.wav for a'): S.Shards(tmp_path)[0]
    s = S.Stream(S.Shards(tmp_path))
    assert [next(s)['id'] for _ in range(5)] == ['b']*5 and s.skipped['no file'] >= 4
    tar(tmp_path/'x.tar', {'1.json': b'{"audio": "audio.wav"}'})
    with pytest.raises(ValueError, match='no row of .* can be read'): next(S.Stream(S.Shards(tmp_path)))

def test_unpack(shards, data, tmp_path):
    back = S.unpack(shards, tmp_path/'b', progress=False)
    for i in range(len(data)):
        a, b = data[i], back[i]
        assert {k: v for k, v in a.items() if k not in S.MEDIA} == {k: v for k, v in b.items() if k not in S.MEDIA}
        assert all(a[k].read_bytes() == b[k].read_bytes() for k in S.MEDIA if k in a)
    tar(tmp_path/'x.tar', {'../../evil.wav': b'x', '../../evil.txt': b'a'})
    S.unpack(S.Shards([tmp_path/'x.tar']), tmp_path/'c', progress=False)
    assert not (tmp_path.parent/'evil.wav').exists() and sorted(p.name for p in (tmp_path/'c/audio').iterdir()) == ['00000000.wav']

# ---- streams

class Numbers:
    name, drops = 'numbers', []
    def __init__(self, groups):
        self.groups, self.rows = groups, [dict(id=str(i)) for i in range(sum(groups))]
        self.places = [(Path('s'), r['id'], {}) for r in self.rows]
    def __len__(self): return len(self.rows)
    def __getitem__(self, i): return i

def take(s, n): return [next(s) for _ in range(n)]

GROUPS = st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any)

@settings(max_examples=60, deadline=None)
@given(GROUPS, st.integers(0, 99), st.integers(1, 4), st.integers(1, 4), st.integers(0, 12))
def test_one_order_for_any_number_of_processes(groups, seed, world, other, steps):
    data = Numbers(groups); n = len(data); alone = take(S.Stream(data, seed), 60)
    for e in range(60//n): assert sorted(alone[e*n:(e + 1)*n]) == list(range(n))  # each row once an epoch
    ranks = [S.Stream(data, seed, r, world) for r in range(world)]
    dealt = [i for row in zip(*(take(s, steps) for s in ranks)) for i in row]
    assert dealt == alone[:len(dealt)]
    states = [json.loads(json.dumps(s.state_dict())) for s in ranks]
    assert all(s == states[0] for s in states)
    later = [S.Stream(data, 0, r, other) for r in range(other)]  # another number of processes goes on
    for s in later: s.load_state_dict(states[0])
    assert [i for row in zip(*(take(s, 3) for s in later)) for i in row] == take_after(data, seed, len(dealt), 3*other)

def take_after(data, seed, skip, n): return take(S.Stream(data, seed), skip + n)[skip:]

def test_rows_of_a_shard_stay_together():
    got = S.order([4, 1, 3], 5, 0); runs = [0 if i < 4 else 1 if i < 5 else 2 for i in got]
    assert len([1 for a, b in zip(runs, runs[1:]) if a != b]) == 2
    assert len({tuple(S.order([4, 1, 3], s, e)) for s in range(5) for e in range(5)}) > 15

def test_states_of_other_data_are_refused(data, shards):
    s = S.Stream(data).state_dict()
    with pytest.raises(ValueError, match='other rows'): S.Stream(shards).load_state_dict(s)
    with pytest.raises(ValueError, match='rank 2 of 2'): S.Stream(data, 0, 2, 2)

READER = '''
import json, os, sys
from pathlib import Path
from omni_lite.data.shards import Shards, Stream
s, state, die = Stream(Shards(Path(sys.argv[1])), seed=3), Path(sys.argv[2]), int(sys.argv[3])
if state.is_file(): s.load_state_dict(json.loads(state.read_text()))
for i, row in enumerate(s):
    print(row['id'], flush=True)
    state.with_suffix('.tmp').write_text(json.dumps(s.state_dict())); os.replace(state.with_suffix('.tmp'), state)
    if i + 1 == die: os.kill(os.getpid(), 9)
'''

def test_killed_within_a_shard_and_resumed(shards, home, tmp_path):
    read = lambda die: subprocess.run([sys.executable, '-c', READER, str(home/'shards'), str(tmp_path/'s.json'), str(die)],
                                      capture_output=True, text=True)
    runs = [read(4), read(5)]
    assert [r.returncode for r in runs] == [-9, -9]
    assert ''.join(r.stdout for r in runs).split() == [r['id'] for r in take(S.Stream(shards, seed=3), 9)]

# ---- the journal

@settings(max_examples=40, deadline=None)
@given(st.integers(0, 400))
def test_a_journal_torn_anywhere_goes_on(tmp_path_factory, at):
    path = tmp_path_factory.mktemp('j')/'j.jsonl'
    with S.Journal(path, 'k') as j:
        for i in range(9): j.add(id=str(i), text='x'*i, n=i)
    whole = path.read_bytes(); path.write_bytes(whole[:at])
    with S.Journal(path, 'k') as j:
        done = len(j.done)
        assert list(j.done) == [str(i) for i in range(done)] and all(r['n'] == int(k) for k, r in j.done.items())
        for i in range(done, 9): j.add(id=str(i), text='x'*i, n=i)
    assert path.read_bytes() == whole

# ---- lessons

@pytest.mark.parametrize('kind', ['files', 'shards'])
@pytest.mark.parametrize('name', FORMATS)
def test_every_format_from_rows(name, kind, data, shards, proc):
    desk, rows = O.Desk(proc, listen), data if kind == 'files' else shards
    desk.learn_voices(rows)
    row = O.RowTask(desk, rows, name, strict=True)(random.Random(0))
    assert row.kind == ('chat' if name == 'reply' else name) and len(row)
    assert (row.labels >= 0).any() or (row.code_labels >= 0).any()

def test_files_and_shards_give_the_same_rows(data, shards, proc):
    for name in ('asr', 'vqa', 'video', 'itts'):
        a, b = (O.RowTask(O.Desk(proc, listen), d, name)(random.Random(4)) for d in (data, shards))
        assert torch.equal(a.ids, b.ids) and torch.equal(a.codes, b.codes) and torch.equal(a.align, b.align)

def test_word_labels_follow_the_times(data, proc):
    codes, align = O.Desk(proc, listen).sound(data[0])
    assert len(codes) == len(align) == 15 and align[0] == -100  # asked for one frame late
    first = proc.tok.encode(' one', add_special_tokens=False)[0]
    assert align[1] == first and O.Desk(proc, listen).sound(data[1])[1] is None

def test_bad_rows_when_drawn(folder, proc):
    wave(folder/'b.wav'); S.write_manifest([dict(id='a', audio='ok.wav', text='x'), dict(id='b', audio='b.wav', text='y')], folder/'m.jsonl')
    m = S.read_manifest(folder/'m.jsonl'); (folder/'b.wav').write_bytes(b'broken now')
    task = O.RowTask(O.Desk(proc, listen), m, 'asr')
    rows = [task(random.Random(s)) for s in range(20)]
    assert len(rows) == 20 and task.skipped.total() > 3
    assert [len(r) for r in rows] == [len(task(random.Random(s))) for s in range(20)]  # the same again
    strict = O.RowTask(O.Desk(proc, listen), m, 'asr', strict=True)
    with pytest.raises(ValueError, match='row b of m.jsonl as asr'): [strict(random.Random(s)) for s in range(20)]
    (folder/'ok.wav').unlink()
    with pytest.raises(ValueError, match='20 rows drawn in turn'): task(random.Random(0))

def test_what_no_row_can_be(data, proc):
    desk = O.Desk(proc, listen)
    with pytest.raises(ValueError, match='no format is named smell'): O.RowTask(desk, data, 'smell')
    plain = S.Manifest([dict(id='0', text='a b')], data.folder, 'plain')
    with pytest.raises(ValueError, match='no row of plain can be itts: it needs audio and text and words'): O.RowTask(desk, plain, 'itts')
    assert list(O.lessons(desk, plain)) == ['own_text']

@pytest.mark.parametrize('ahead', [False, True])
def test_a_mixture_of_own_rows_goes_on_exactly(data, shards, proc, ahead):
    def loader():
        tasks = O.lessons(O.Desk(proc, listen), shards)
        b = Batches(Mixture(tasks, {k: 1. for k in tasks}, seed=7), tokens=200, pool=2)
        return Ahead(b) if ahead else b
    a = loader(); take(a, 3); state = a.state_dict(); want = take(a, 4)
    b = loader(); b.load_state_dict(state)
    for x, y in zip(want, take(b, 4)): assert torch.equal(x['input_ids'], y['input_ids']) and torch.equal(x['codes'], y['codes'])

def test_codes_are_found_once_and_again_for_another_tokenizer(data, tmp_path):
    class Book: started, embed = True, torch.zeros(2, 2)
    class Model:
        device = 'cpu'
        def __init__(self): self.tokenizer = self; self.rvq = self; self.books = [Book()]; self.calls = 0
        def encode(self, wav): self.calls += 1; return listen(wav)
    m = Model(); codes = O.encode_rows(data, m, tmp_path/'c.jsonl', progress=False)
    assert set(codes) == {'talk/audio', 'quote/audio', 'quote/answer_audio'} and m.calls == 3
    torn = (tmp_path/'c.jsonl').read_bytes(); (tmp_path/'c.jsonl').write_bytes(torn[:-30])
    again = O.encode_rows(data, m, tmp_path/'c.jsonl', progress=False)
    assert m.calls == 4 and all(torch.equal(codes[k], again[k]) for k in codes) and (tmp_path/'c.jsonl').read_bytes() == torn
    m.books[0].embed = torch.ones(2, 2); O.encode_rows(data, m, tmp_path/'c.jsonl', progress=False)
    assert m.calls == 7

# ---- bridges

LINES = [dict(text=t, voice=v, kind='statement') for t in ('one two', 'a small house', 'yes') for v in ('heart', 'deep', 'kid')]

def test_store_to_manifest_and_back(tmp_path):
    store = build_speech(LINES, tmp_path/'s', workers=0, progress=False, speaker=beeper)
    m = O.store_manifest(store, tmp_path/'m')
    assert [r['words'] and [w for w, _, _ in r['words']] for r in m.rows] == [r['text'].split() for r in store.rows]
    back = O.manifest_store(m, tmp_path/'b', workers=0, progress=False)
    for k in ('text', 'voice', 'kind', 'split', 'n_frames12'): assert [r[k] for r in back.rows] == [r[k] for r in store.rows]
    assert (np.asarray(back.maps['word']) == np.asarray(store.maps['word'])).all()
    assert np.abs(np.asarray(back.maps['wav'], int) - np.asarray(store.maps['wav'], int)).max() <= 1
    assert all(r['recorded'] for r in back.rows) and not any(r['recorded'] for r in store.rows)
    sheet = (tmp_path/'b/datasheet.md').read_text()
    assert '9 were recorded' in sheet and 'hibari' not in sheet and '| recordings | Apache-2.0 |' in sheet
    assert 'Nobody was recorded' in (tmp_path/'s/datasheet.md').read_text()
    assert 'm/audio' not in (tmp_path/'b/index.jsonl').read_text()  # no path of this machine
    part = O.store_manifest(store, tmp_path/'p', take=[2, 4])
    assert [r['text'] for r in part.rows] == ['one two', 'a small house']

def test_recordings_that_break_are_in_the_datasheet_and_a_changed_file_is_noticed(folder):
    wave(folder/'b.wav'); S.write_manifest([dict(id='a', audio='ok.wav', text='x'), dict(id='b', audio='b.wav')], folder/'m.jsonl')
    m = S.read_manifest(folder/'m.jsonl'); (folder/'b.wav').unlink()
    store = O.manifest_store(m, folder/'s', workers=0, progress=False)
    assert [r['source'] for r in store.rows] == ['a'] and json.loads((folder/'s/datasheet.json').read_text())['dropped']
    before = store[0]['wav'].copy(); wave(folder/'ok.wav', seed=9)
    assert not (O.manifest_store(m, folder/'s', workers=0, progress=False)[0]['wav'] == before).all()
    with pytest.raises(ValueError, match='nothing to store'): O.manifest_store(S.Manifest([dict(id='0', text='a')], folder), folder/'t')

def test_voices_of_the_test_stay_out(folder):
    S.write_manifest([dict(id='a', audio='ok.wav', text='x', voice='kid')], folder/'m.jsonl')
    with pytest.raises(ValueError, match="'kid' is for tests only"): O.manifest_store(S.read_manifest(folder/'m.jsonl'), folder/'s')
