"""The bench's arithmetic, on toys: pairs, registry, agreement before timing."""
import json
import pytest
from omni_lite import bench as B
from omni_lite.bench import BENCHES, Bench, Case

@pytest.fixture
def toy(monkeypatch):
    "A bench whose clock is ours: ours takes 1 s, the anchor 3 s, and every call is noted."
    calls, now = [], [0.]
    def work(name, seconds):
        def f(): calls.append(name); now[0] += seconds; return 7
        return f
    monkeypatch.setattr(B.time, 'perf_counter', lambda: now[0])
    case = Case('toy', work('ours', 1.), work('anchor', 3.), lambda a, b: a == b)
    monkeypatch.setitem(BENCHES, 'toy', Bench('toy', 'nothing', 'more of it', lambda: [case]))
    return calls

def test_row(toy):
    r = B.run('toy', pairs=5)
    assert r['rows'] == [dict(case='toy', ours=1000., anchor=3000., unit='ms', ratio=3., spread=[3., 3.], pairs=5)]
    assert json.loads(json.dumps(r)) == r and r['machine']['versions']['omni_lite'] and r['machine']['cores'] > 0
    assert '| toy | 1e+03 ms | 3e+03 ms | 3.00 | 3.00 to 3.00 |' in B.table(r)

def test_pairs_swap_who_goes_first(toy):
    B.run('toy', pairs=4)
    assert toy[2:] == ['ours', 'anchor', 'anchor', 'ours']*2

def test_disagreement_is_not_timed(monkeypatch):
    case = Case('toy', lambda: 1, lambda: 2, lambda a, b: a == b)
    monkeypatch.setitem(BENCHES, 'toy', Bench('toy', '', '', lambda: [case]))
    with pytest.raises(ValueError, match='disagree'): B.run('toy')

def test_bad_requests():
    with pytest.raises(ValueError, match='no bench'): B.run('nothing')
    with pytest.raises(ValueError, match='3 or more'): B.run('vocoder', pairs=2)
    with pytest.raises(ValueError, match='registered already'): B.bench('vocoder', '', '')(lambda: [])

def test_every_bench_registers_itself():
    assert {'codec', 'navit', 'rvq', 'vocoder'} <= set(B.benches())

def test_more_columns(monkeypatch):
    class More(Case):
        def extra(self, row): return dict(rtf=row['ours'])
    monkeypatch.setitem(BENCHES, 'toy', Bench('toy', '', '', lambda: [More('toy', lambda: 1, lambda: 1)]))
    row = B.run('toy', pairs=3)['rows'][0]
    assert row['rtf'] == row['ours']

def test_one_thread_gives_the_threads_back():
    import torch
    n = torch.get_num_threads()
    assert B.one_thread(torch.get_num_threads)() == 1 and torch.get_num_threads() == n
    assert B.one_thread(torch.is_grad_enabled, grad=True)() and not B.one_thread(torch.is_grad_enabled)()
