"""The quantiser: searches agree, switches do what they say, bad codes are refused, two processes learn what one learns."""
import copy, importlib, io, os, subprocess, sys, textwrap
import pytest, torch
from torch.nn import functional as F
from hypothesis import given, settings, strategies as st
from omni_lite.audio import rvq as R
from omni_lite.audio.rvq import RVQ, Codebook, gumbel_nearest, kmeans, nearest, prepare, rotate, straight, usage

REFERENCE = (8192, 4096, 2048) + (1024,)*5

def naive(x, book): return torch.cdist(x.double(), book.double()).argmin(1)

# ---- searches

@settings(max_examples=25, deadline=None)
@given(N=st.integers(0, 70), K=st.integers(1, 200) | st.sampled_from([64, 128, 640]), D=st.integers(1, 40), shift=st.sampled_from([0., 3., -50.]),
       scale=st.sampled_from([1e-3, 1., 30.]), seed=st.integers(0, 99))
def test_searches_agree(N, K, D, shift, scale, seed):
    "Both searches find an entry as near as the nearest, whatever the shapes, the scale and the mean."
    torch.manual_seed(seed)
    x, book = torch.randn(N, D)*scale + shift, torch.randn(K, D)*scale + shift
    d = torch.cdist(x.double(), book.double()).square()
    for search in ('exact', 'bf16'):
        i = nearest(x, book, search)
        assert i.shape == (N,) and i.dtype == torch.long
        if N: assert (d.gather(1, i[:, None])[:, 0] - d.amin(1)).max() <= 1e-5*((x.norm(dim=1)+book.norm(dim=1).max()).max()**2)

@pytest.mark.parametrize('K', [64, 100, 1024, 3000])
def test_bf16_finds_the_same_indices(K):
    torch.manual_seed(K)
    x, book = torch.randn(700, 48), torch.randn(K, 48)
    want = naive(x, book)
    assert torch.equal(nearest(x, book), want) and torch.equal(nearest(x, book, 'bf16'), want)
    wrong = (x.bfloat16() @ book.bfloat16().T - book.square().sum(1)/2).argmax(1) != want
    assert K < 1000 or wrong.any()  # the rough product alone would have been wrong: the second look matters

def test_candidates_hold_the_nearest_entry():
    "Entries so close together that bf16 cannot tell them apart: all stay candidates."
    torch.manual_seed(0)
    book = 5 + torch.randn(1, 32) + 1e-3*torch.randn(256, 32)
    x = book[torch.randint(256, (64,))] + 1e-4*torch.randn(64, 32)
    row, entry = R._candidates(x, prepare(book, 'bf16'))
    pairs = set(zip(row.tolist(), entry.tolist()))
    assert all((n, i) in pairs for n, i in enumerate(naive(x, book).tolist()))

def test_hopeless_rounding_falls_back():
    "Equal entries but for noise below bf16: every pair is a candidate, so the exact search does it."
    torch.manual_seed(0)
    book = torch.cat([torch.full((1, 8), 1000.), torch.full((1, 8), -1000.), 1e-3*torch.randn(1022, 8)])
    x = 1e-3*torch.randn(40, 8)
    assert len(R._candidates(x, prepare(book, 'bf16'))[0]) > 64*40
    assert torch.equal(nearest(x, book, 'bf16'), nearest(x, book))

def test_first_of_equal_entries():
    book = torch.randn(64, 8).repeat(4, 1)
    x = torch.randn(50, 8)
    assert nearest(x, book).max() < 64 and torch.equal(nearest(x, book), nearest(x, book, 'bf16'))

@pytest.mark.parametrize('search', ['exact', 'bf16'])
def test_autocast_does_not_round_the_search(search):
    torch.manual_seed(0)
    rvq = RVQ(64, (512, 256), kmeans_rounds=0, search=search).eval()
    z = torch.randn(2, 100, 64)
    want = rvq.encode(z)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(rvq.encode(z), want) and torch.equal(rvq(z).codes, want)
        assert torch.equal(nearest(z[0], rvq.books[0].embed), want[0, :, 0])
        assert gumbel_nearest(z[0], rvq.books[0].embed, .1).shape == (100,)

def test_training_under_autocast_equals_fp32():
    def step(on):
        torch.manual_seed(0); rvq = RVQ(32, (64, 32)); z = torch.randn(4, 100, 32)
        with torch.autocast('cpu', torch.bfloat16, enabled=on): return rvq(z).codes, rvq.books[1].embed
    for a, b in zip(step(False), step(True)): assert torch.equal(a, b)

def test_unknown_search():
    for f in (lambda: nearest(torch.zeros(1, 2), torch.zeros(3, 2), 'int8'), lambda: RVQ(4, (2,), search='int8')):
        with pytest.raises(ValueError, match='choose exact or bf16'): f()

# ---- what is prepared is never stale

def test_norms_are_kept_until_an_entry_changes():
    cb = Codebook(32, 8).eval()
    first = cb.ready()
    assert cb.ready() is first and cb.ready('bf16') is not first
    changes = (lambda: cb.embed.mul_(2), lambda: cb.load_state_dict(Codebook(32, 8).state_dict()),
               lambda: setattr(cb, 'embed', torch.randn(32, 8)), lambda: cb.double().float())
    for change in changes:
        cb.ready(); change()
        assert torch.equal(cb.ready().square, cb.embed.float().square().sum(1))
    with torch.inference_mode(): cb.embed.add_(1)
    assert torch.equal(cb.ready().square, cb.embed.square().sum(1))

def test_frame_by_frame_equals_all_at_once():
    "A single vector is searched in the turned copy of the book, which must be as fresh as the rest."
    torch.manual_seed(0); rvq = RVQ(24, (256, 100, 64), kmeans_rounds=0).eval(); z = torch.randn(30, 24)
    step = lambda: torch.cat([rvq.encode(f[None]) for f in z])
    assert torch.equal(step(), rvq.encode(z)) and 'turned' in vars(rvq.books[0]._ready[2])
    for b in rvq.books: b.embed.neg_()
    assert torch.equal(step(), rvq.encode(z))

def test_training_prepares_anew_and_copies_carry_nothing():
    cb = Codebook(32, 8)
    assert cb.ready() is not cb.ready() and cb._ready is None
    cb.eval().ready()
    assert cb._ready is not None and copy.deepcopy(cb)._ready is None
    file = io.BytesIO(); torch.save(cb, file); file.seek(0)
    assert torch.load(file, weights_only=False)._ready is None

@pytest.mark.parametrize('search', ['exact', 'bf16'])
def test_prepared_in_inference_mode_serves_outside(search):
    torch.manual_seed(0); rvq = RVQ(8, (64, 32), kmeans_rounds=0, search=search).eval(); z = torch.randn(1, 40, 8)
    with torch.inference_mode(): want = rvq.encode(z)
    out = rvq(z.requires_grad_()); out.z.sum().backward()
    assert torch.equal(out.codes, want) and torch.equal(z.grad, torch.ones_like(z))

def test_state_names():
    names = {f'books.{l}.{n}' for l in range(2) for n in ('embed', 'embed_avg', 'cluster_size', 'started')}
    rvq = RVQ(8, (4, 4)).eval(); rvq.encode(torch.randn(3, 8))
    assert set(rvq.state_dict()) == names

# ---- shapes, prefixes, bad input

@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(1, 70), min_size=1, max_size=16), lead=st.lists(st.integers(0, 4), max_size=3), D=st.integers(1, 12))
def test_any_list_of_sizes(sizes, lead, D):
    rvq = RVQ(D, tuple(sizes), kmeans_rounds=0).eval()
    z = torch.randn(*lead, D)
    codes = rvq.encode(z)
    assert codes.shape == (*lead, len(sizes)) and rvq.decode(codes).shape == z.shape
    for k in range(1, len(sizes) + 1):
        assert torch.equal(rvq.encode(z, k), codes[..., :k]) and rvq.decode(codes[..., :k]).shape == z.shape

def test_sizes_of_the_reference():
    torch.manual_seed(0)
    rvq = RVQ(16, REFERENCE, kmeans_rounds=0).eval()
    z = torch.randn(1, 40, 16)
    codes = rvq.encode(z); rvq.search = 'bf16'
    assert torch.equal(rvq.encode(z), codes) and (codes.amax((0, 1)) < torch.tensor(REFERENCE)).all()
    assert sum(r['size'] for r in usage(codes, REFERENCE)) == 19456
    res = z[0]
    for l, b in enumerate(rvq.books):
        assert torch.equal(codes[0, :, l], naive(res, b.embed)); res = res - b.embed[codes[0, :, l]]
    torch.testing.assert_close(rvq.decode(codes)[0], z[0] - res)

@pytest.mark.parametrize('make, says', [
    (lambda: RVQ(4, ()), '0 levels: choose 1 to 16'), (lambda: RVQ(4, (2,)*17), '17 levels: choose 1 to 16'),
    (lambda: RVQ(4, (2, 0)), 'at least 1'), (lambda: RVQ(4, (2,), gradient='none'), 'choose straight or rotate')])
def test_bad_settings(make, says):
    with pytest.raises(ValueError, match=says): make()

def test_bad_codes():
    rvq = RVQ(4, (8, 4), kmeans_rounds=0).eval()
    bad = {'code of level 2 is outside 0..3': torch.tensor([[7, 4]]), 'code of level 1 is outside 0..7': torch.tensor([[-1, 0]]),
           'cut the codes to 2 levels': torch.zeros(1, 3).long(), 'give integers': torch.zeros(1, 2),
           'at least the first': torch.zeros(1, 0).long()}
    for says, codes in bad.items():
        with pytest.raises(ValueError, match=says) as e: rvq.decode(codes)
        assert '\n' not in str(e.value)
    with pytest.raises(ValueError, match='width 5 for books of width 4'): rvq.encode(torch.zeros(2, 5))
    for n in (0, 3):
        with pytest.raises(ValueError, match='choose 1 to 2'): rvq.encode(torch.zeros(2, 4), n)
    assert rvq.decode(torch.zeros(0, 2).long()).shape == (0, 4) and rvq.decode(torch.tensor([[7, 3]], dtype=torch.int16)).shape == (1, 4)

# ---- gradients

@pytest.mark.parametrize('f', [straight, rotate])
def test_value_is_the_code(f):
    z, q = torch.randn(50, 6), torch.randn(50, 6)
    torch.testing.assert_close(f(z, q), q)

def test_rotation_turns_the_gradient():
    "Against an explicit rotation matrix: gradient of the input = scale · Rᵀ · gradient of the output, and R carries z onto q."
    torch.manual_seed(0)
    z, q, g = torch.randn(6, dtype=torch.double), torch.randn(6, dtype=torch.double), torch.randn(6, dtype=torch.double)
    u, v = z/z.norm(), q/q.norm()
    K = v[:, None]*u - u[:, None]*v; rot = torch.eye(6) + K + K@K/(1 + u@v)
    torch.testing.assert_close(rot@z*(q.norm()/z.norm()), q)
    leaf = z[None].clone().requires_grad_(); rotate(leaf, q[None]).backward(g[None])
    torch.testing.assert_close(leaf.grad[0], q.norm()/z.norm()*rot.T@g)

def test_rotation_of_awkward_vectors():
    z = torch.tensor([[0., 0.], [1., 0.], [1., 0.], [2., 0.]], requires_grad=True)
    q = torch.tensor([[1., 0.], [-1., 0.], [0., 0.], [2., 0.]])
    y = rotate(z, q); y.sum().backward()
    assert torch.equal(y, q) and torch.isfinite(z.grad).all() and torch.equal(z.grad[3], torch.ones(2))

@pytest.mark.parametrize('gradient', ['straight', 'rotate'])
def test_masked_positions_stay_out(gradient):
    torch.manual_seed(0)
    mask = torch.ones(3, 20, dtype=torch.bool); mask[0, 5:] = mask[2, 19:] = False
    z = torch.randn(3, 20, 8); z[~mask] = 1e6
    a, b = (RVQ(8, (16, 8), dropout=0., gradient=gradient) for _ in range(2)); b.load_state_dict(a.state_dict())
    leaf = z.clone().requires_grad_()
    torch.manual_seed(1); out = a(leaf, mask); (out.z.square().sum() + out.commit).backward()
    torch.manual_seed(1); b._quantise(z[mask])
    for l in range(2): assert torch.equal(a.books[l].embed, b.books[l].embed) and a.books[l].embed.abs().max() < 10
    assert leaf.grad[~mask].abs().sum() == 0 and leaf.grad[mask].abs().min() > 0
    assert out.z[~mask].abs().sum() == out.level1[~mask].abs().sum() == 0

# ---- switches of the training

def books_after(steps=30, seed=0, **kw):
    torch.manual_seed(seed); rvq = RVQ(8, (32, 16), dropout=0., **kw)
    mix = torch.randn(3, 8)
    for _ in range(steps): rvq(torch.randn(1, 300, 3) @ mix + 2)
    return rvq.eval(), torch.randn(1, 600, 3) @ mix + 2

def test_nothing_moves_in_eval():
    rvq, z = books_after(5); was = {k: v.clone() for k, v in rvq.state_dict().items()}
    rvq(z, share=.1); rvq.encode(z)
    assert all(torch.equal(v, was[k]) for k, v in rvq.state_dict().items()) and (rvq(z, share=0.).levels == 2).all()

def test_moving_average_by_hand():
    cb = Codebook(2, 1, decay=.9, shrink=.1, restart=0., kmeans_rounds=0)
    cb.embed.copy_(torch.tensor([[0.], [10.]])); cb.embed_avg.copy_(cb.embed)
    cb.update(torch.tensor([[1.], [2.], [9.]]), torch.tensor([0, 0, 1]))
    size, total = torch.tensor([.9 + .2, .9 + .1]), torch.tensor([.3, 9. + .9])
    torch.testing.assert_close(cb.cluster_size, size); torch.testing.assert_close(cb.embed[:, 0], total/size*.9)

def test_restart_and_collapse():
    dead = {}
    for r in (0., .2):
        rvq, z = books_after(80, restart=r, kmeans_rounds=0, decay=.9)
        dead[r] = 1 - usage(rvq.encode(z), rvq.sizes)[0]['used']/32
    assert dead[.2] < .05 < .4 < dead[0.]

def test_restarted_entries_lie_on_the_batch():
    torch.manual_seed(0); cb = Codebook(8, 4, kmeans_rounds=0); x = torch.randn(20, 4)
    dead = torch.arange(8) < 3; was = cb.embed.clone(); cb.revive(dead, x)
    assert all((x == e).all(1).any() for e in cb.embed[:3]) and torch.equal(cb.embed[3:], was[3:])
    assert torch.equal(cb.embed_avg[:3], cb.embed[:3]) and (cb.cluster_size[:3] == 1).all()

def test_kmeans_start_is_nearer():
    err = {}
    for rounds in (0, 8):
        rvq, z = books_after(1, kmeans_rounds=rounds); err[rounds] = F.mse_loss(rvq.decode(rvq.encode(z)), z)
    assert err[8] < .5*err[0]

def test_kmeans_lowers_the_error():
    torch.manual_seed(0); x = torch.randn(500, 4)
    error = lambda rounds: (torch.manual_seed(1), torch.cdist(x, kmeans(x, 20, rounds)).amin(1).square().mean())[1]
    assert error(8) < error(2) < error(0)

def test_kmeans_with_fewer_vectors_than_centres():
    x = torch.randn(5, 3)
    assert torch.isfinite(kmeans(x, 12)).all() and kmeans(x, 12).shape == (12, 3)

def test_shrink_pulls_to_zero():
    norm = {b: books_after(40, shrink=b)[0].books[0].embed.norm(dim=1).mean() for b in (0., .1)}
    assert norm[.1] < .95*norm[0.]

def test_gumbel_follows_the_softmax():
    torch.manual_seed(0)
    book, x = torch.tensor([[1., 0.], [0., 1.5], [-2., 0.]]), torch.zeros(60000, 2)
    for t in (.5, 2.):
        want = torch.softmax(-torch.tensor([1., 2.25, 4.])/t, 0)  # the unit is the squared distance 1 to the nearest
        got = torch.bincount(gumbel_nearest(x, book, t), minlength=3)/60000
        torch.testing.assert_close(got, want, atol=.01, rtol=0)

def test_gumbel_only_while_training():
    torch.manual_seed(0); rvq = RVQ(8, (64,), gumbel=1., kmeans_rounds=0, dropout=0.); z = torch.randn(1, 200, 8)
    near = nearest(z[0], rvq.books[0].embed)
    assert (rvq._choose(z[0], rvq.books[0]) != near).any()
    rvq.eval(); assert torch.equal(rvq(z).codes[0, :, 0], near)
    rvq.train(); rvq.gumbel = 1e-6
    assert torch.equal(rvq._choose(z[0], rvq.books[0]), near)

def test_dropout_and_curriculum_shares():
    torch.manual_seed(0); rvq = RVQ(4, (8,)*4, dropout=.5, kmeans_rounds=0); z = torch.randn(2000, 1, 4)
    out = rvq(z, share=.4)
    n = torch.bincount(out.levels, minlength=6)/2000
    torch.testing.assert_close(n, torch.tensor([0., .05, .05, .05, .25, .6]), atol=.04, rtol=0)
    raw = out.levels == 5
    torch.testing.assert_close(out.z[raw], z[raw]); assert (out.z[~raw] != z[~raw]).any()

def test_dropped_levels_are_prefixes():
    torch.manual_seed(0); rvq = RVQ(4, (8,)*4, dropout=1., kmeans_rounds=0, restart=0., decay=1.); z = torch.randn(64, 3, 4)
    out = rvq(z)
    for b in range(64): torch.testing.assert_close(out.z[b], rvq.decode(out.codes[b, :, :out.levels[b]]))
    torch.testing.assert_close(out.level1, rvq.decode(out.codes[..., :1]))

def test_commitment_pulls_the_input_to_the_code():
    torch.manual_seed(0); rvq = RVQ(4, (8, 8), dropout=0., kmeans_rounds=0).eval(); z = torch.randn(2, 5, 4, requires_grad=True)
    out = rvq(z); out.commit.backward()
    want = (2*(z - rvq.decode(out.codes)) + .25*2*(z - rvq.decode(out.codes[..., :1])))/z.numel()
    torch.testing.assert_close(z.grad, want.detach())

def test_usage_by_hand():
    rows = usage(torch.tensor([[0, 1], [1, 1], [0, 1], [1, 1]]), (4, 2))
    assert [(r['level'], r['size'], r['used'], r['perplexity'], r['bits']) for r in rows] == [(1, 4, 2, 2., 1.), (2, 2, 1, 1., 0.)]

# ---- several processes

WORK = '''
    import sys, torch, torch.distributed as dist
    from omni_lite.audio.rvq import RVQ
    def train(rank, world):
        g = torch.Generator().manual_seed(7); mix = torch.randn(4, 12, generator=g)
        torch.manual_seed(0); rvq = RVQ(12, (32, 16, 8), restart=.5, decay=.9, dropout=0.)
        for step in range(8):
            z = torch.randn(6, 40, 4, generator=g) @ mix + 1
            mask = torch.rand(6, 40, generator=g) < .8  # so the processes hold different numbers of vectors
            part = slice(rank*6//world, (rank + 1)*6//world)
            torch.manual_seed(100 + step + 1000*rank); rvq(z[part], mask[part])
        return rvq.state_dict()
    if 'RANK' in __import__('os').environ:
        dist.init_process_group('gloo'); rank, world = dist.get_rank(), dist.get_world_size()
    else: rank, world = 0, 1
    torch.save(train(rank, world), f'{sys.argv[1]}/{world}-{rank}.pt')
    if world > 1: dist.destroy_process_group()
'''

def test_two_processes_learn_what_one_learns(tmp_path, root):
    "k-means start, moving averages and restart: half batches in two processes, the whole batch in one."
    work = tmp_path/'work.py'; work.write_text(textwrap.dedent(WORK))
    env = {**os.environ, 'PYTHONPATH': str(root), 'OMP_NUM_THREADS': '1'}
    for launch in ([], ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']):
        done = subprocess.run([sys.executable, *launch, str(work), str(tmp_path)], env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
    one, a, b = (torch.load(tmp_path/f'{n}.pt') for n in ('1-0', '2-0', '2-1'))
    for k in one:
        assert torch.equal(a[k], b[k]), k
        torch.testing.assert_close(a[k], one[k], rtol=1e-4, atol=1e-5, msg=lambda m: f'{k}: {m}')

# ---- the bench

@pytest.fixture
def rows():
    "The module of the bench."
    return importlib.import_module('omni_lite.benches.rvq')

def test_bench_names_what_is_missing(rows, monkeypatch):
    monkeypatch.setattr(rows.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match='pip install vector-quantize-pytorch'): rows.pair(8, (4,))

def test_bench_sees_wrong_codes(rows):
    torch.manual_seed(0)
    books = [torch.randn(16, 8), torch.randn(8, 8)*.1]; books[0][3] = books[0][5]
    x = torch.randn(200, 8); a = R._exact(x, prepare(books[0])); a = torch.stack([a, nearest(x - books[0][a], books[1])], 1)
    tied, wrong = a.clone(), a.clone()
    tied[(a[:, 0] == 3).nonzero()[:1], 0] = 5; wrong[0, 1] = (wrong[0, 1] + 1) % 8
    assert rows.same_codes(a, a, x, books) and rows.same_codes(a, tied, x, books) and not rows.same_codes(a, wrong, x, books)

@pytest.mark.parametrize('make', ['_encode_case', '_train_case'])
def test_bench_compares_equal_work(rows, make):
    pytest.importorskip('vector_quantize_pytorch')
    case = getattr(rows, make)('tiny', 40, 16, (64, 32))
    assert case.agree(case.ours(), case.anchor())
    extra = case.extra(dict(pairs=3))
    assert set(extra) == {'floor', 'floor_gflops', 'above_floor'} and extra['floor'] > 0
