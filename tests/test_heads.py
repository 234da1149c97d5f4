"""The three heads behind one interface: losses, draws, the staircase of codes, cached against full, and the bench."""
import importlib
from dataclasses import replace
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F
from omni_lite.config import HeadConfig, preset
from omni_lite.data.mixture import collate
from omni_lite.layers import Block
from omni_lite.omni.depth_head import AudioEmbedding, DepthHead, bare, by_level, pick
from omni_lite.omni.model import OmniForCausalLM
from omni_lite.omni.other_heads import HEADS, DelayHead, FrameStream, ParallelHead, build_head, delay, undelay
from omni_lite.omni.rows import RowBuilder
from omni_lite.text import train_tokenizer

SIZES, CFG = (12, 6, 6, 5), HeadConfig(24, 2, 2, 32)
kinds = pytest.mark.parametrize('kind', HEADS)
some = settings(max_examples=40, deadline=None, derandomize=True)

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0); torch.set_num_threads(1)

def make(kind='depth', dim=16, **kw):
    head, emb = build_head(dim, SIZES, replace(CFG, kind=kind, **kw)), AudioEmbedding(SIZES, dim)
    for t in emb.tables: t.weight.data.mul_(50.)
    return head.eval(), emb

def frames(n): return torch.stack([torch.randint(0, k, (n,)) for k in SIZES], -1)
def close(a, b, tol=1e-5): torch.testing.assert_close(a, b, atol=tol, rtol=0)

# ---- one interface

@kinds
def test_greedy_draw_is_the_argmax_under_teacher_forcing(kind):
    head, emb = make(kind); hidden = torch.randn(40, 16)
    drawn = head.sample(emb, hidden, 0.)
    for i, l in enumerate(head(hidden, drawn, emb)):
        assert drawn[:, i].equal((l if i == 0 else l[:, :SIZES[i]]).argmax(-1))

@kinds
def test_draws_follow_the_distribution(kind):
    "Level 2 given level 1, 20,000 draws from one state against the softmax of the full pass."
    head, emb = make(kind); hidden = torch.randn(1, 16)
    drawn = head.sample(emb, hidden.repeat(20000, 1), 1., 0, torch.Generator().manual_seed(1))
    first = drawn[:, 0].bincount(minlength=SIZES[0] + 1)
    close(first/len(drawn), head(hidden, drawn[:1], emb)[0][0].detach().softmax(-1), .02)
    mine = drawn[drawn[:, 0] == (k := int(first.argmax()))]
    logits = head(hidden, torch.tensor([[k, 0, 0, 0]]), emb)[1][0, :SIZES[1]].detach()
    close(mine[:, 1].bincount(minlength=SIZES[1])/len(mine), logits.softmax(-1), .04)

@kinds
def test_overfits_one_batch(kind):
    head, emb = make(kind); hidden, codes = torch.randn(20, 16), frames(20); codes[3] = torch.tensor([12, -100, -100, -100])
    opt = torch.optim.Adam([*head.parameters(), *emb.parameters()], 2e-2)
    for _ in range(150): loss, levels = head.train().loss(emb, hidden, codes, share=1.); opt.zero_grad(); loss.backward(); opt.step()
    real = codes[:, 0] < 12
    drawn = head.eval().sample(emb, hidden, 0.)
    assert levels.max() < .1 and drawn[real].equal(codes[real]) and drawn[3, 0] == 12

@kinds
def test_loss_is_the_mean_over_what_is_labelled(kind):
    head, emb = make(kind); hidden, codes = torch.randn(9, 16), frames(9)
    codes[4] = torch.tensor([12, -100, -100, -100])
    if head.delayed: codes[2, 1:3] = codes[7, 0] = -100
    want = []
    for i, l in enumerate(head(hidden, codes.clamp(min=0), emb)):
        want.append(F.cross_entropy(l[(y := codes[:, i]) >= 0], y[y >= 0]))
    total, levels = head.loss(emb, hidden, codes, share=1.)
    close(levels, torch.stack(want).detach())
    close(total.detach(), (want[0] + .3*torch.stack(want[1:]).mean()).detach())

@kinds
def test_an_end_in_a_batch_without_frames(kind):
    "Only ends: level 1 learns, nothing is nan, and every weight stays in the graph."
    head, emb = make(kind); codes = torch.tensor([[12, -100, -100, -100]]*3)
    loss, levels = head.loss(emb, torch.randn(3, 16), codes); loss.backward()
    assert loss.isfinite() and levels.isfinite().all() and all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())

def test_what_stands_beside_the_end_code_does_not_count():
    for kind in ('depth', 'parallel'):
        head, emb = make(kind); hidden, a = torch.randn(6, 16), frames(6); a[2, 0] = 12
        b = a.clone(); b[2, 1:] = (b[2, 1:] + 1) % 5
        close(head.loss(emb, hidden, a, share=1.)[1], head.loss(emb, hidden, b, share=1.)[1])

def test_a_kind_that_is_not_there():
    with pytest.raises(ValueError, match="no head of kind 'serial': choose depth, parallel, delay"): build_head(8, (4,), HeadConfig(kind='serial'))

def test_classifiers_alone():
    head = ParallelHead(16, SIZES, HeadConfig(layers=0))
    assert {k.split('.')[0] for k in head.state_dict()} == {'heads'}

# ---- the depth head's cache

@pytest.mark.parametrize('official', [False, True])
@pytest.mark.parametrize('width', [16, 24])
def test_cached_logits_equal_full_ones(official, width):
    head, emb = make(official=official, dim=width); hidden, codes = torch.randn(5, width), frames(5)
    full, cache, twin, x = head(hidden, codes, emb), {}, bare(head), hidden[:, None]
    for i in range(4):
        close(twin.heads[i](twin.run(x, i, cache)[:, 0]), full[i])
        x = emb.tables[i](codes[:, i])[:, None] + (x if i else 0)

def test_names_of_the_weights():
    "Checkpoints know these names."
    got = set(DepthHead(16, SIZES, CFG).state_dict())
    block = [f'attn.{p}_proj.{w}' for p in ('q', 'k', 'v', 'out') for w in ('weight', 'bias')] + ['norm1.weight', 'norm2.weight', 'ffn.w1', 'ffn.w2']
    want = {f'blocks.{i}.{n}' for i in range(2) for n in block} | {f'heads.{i}.{w}' for i in range(4) for w in ('weight', 'bias')}
    assert got == want | {'norm.weight', 'inp.weight', 'inp.bias'}

def test_sampling_leaves_the_head_as_it_was():
    "The twin that draws shares the weights, sees them change, and changes nothing; a teacher-forced pass after it is the same."
    head, emb = make(); hidden, codes = torch.randn(4, 16), frames(4)
    before = [l.clone() for l in head(hidden, codes, emb)]
    drawn = head.sample(emb, hidden, 0.)
    for a, b in zip(head(hidden, codes, emb), before): assert a.equal(b)
    with torch.no_grad(): head.heads[0].bias[(int(drawn[0, 0]) + 1) % 12] += 1e3
    assert (head.sample(emb, hidden, 0.)[:, 0] == (int(drawn[0, 0]) + 1) % 12).all()

def test_bare_modules():
    block, x = Block(16, 2, 32), torch.randn(2, 3, 16)
    assert bare(block)(x).equal(block(x))
    net = torch.nn.Sequential(torch.nn.Linear(16, 4), torch.nn.GELU())
    assert bare(net)(x).equal(net(x))
    seen = []; block.attn.register_forward_hook(lambda *a: seen.append(1)); bare(block)(x)
    assert seen == [1] and bare(block).attn is block.attn and bare(block).ffn is not block.ffn
    block.ffn.forward = lambda x: x*0   # how offloading wraps a module
    assert bare(block)(x).equal(block(x))

# ---- drawing

@pytest.mark.parametrize('kw', [dict(), dict(temperature=.3), dict(top_k=3), dict(top_p=.6), dict(top_k=4, top_p=.8, temperature=.7, penalty=1.3)])
def test_distribution_equals_transformers(kw):
    "The same classes remain with the same shares: penalty, temperature, top-k, top-p, in this order."
    from transformers.generation import logits_process as lp
    kw = dict(temperature=1., top_k=0, top_p=1., penalty=1.) | kw
    logits, past = 2*torch.randn(3, 9), torch.tensor([[0, 4, 4], [2, -1, -1], [-1, -1, -1]])
    s = logits.clone()
    for i in range(3):
        if kw['penalty'] != 1 and (p := past[i][past[i] >= 0]).numel(): s[i:i+1] = lp.RepetitionPenaltyLogitsProcessor(kw['penalty'])(p[None], s[i:i+1])
    s = lp.TemperatureLogitsWarper(kw['temperature'])(None, s)
    if kw['top_k']: s = lp.TopKLogitsWarper(kw['top_k'])(None, s)
    if kw['top_p'] < 1: s = lp.TopPLogitsWarper(kw['top_p'])(None, s)
    want, n = s.softmax(-1), 20000
    for i in range(3):
        got = pick(logits[i:i+1].repeat(n, 1), past=past[i:i+1].repeat(n, 1), generator=torch.Generator().manual_seed(i), **kw).bincount(minlength=9)/n
        assert ((got > 0) <= (want[i] > 0)).all()
        close(got, want[i], .02)

def test_same_generator_same_draws():
    logits, g = torch.randn(50, 30), lambda: torch.Generator().manual_seed(3)
    assert pick(logits, 1., 0, g()).equal(pick(logits, 1., 0, g())) and not pick(logits, 1., 0, g()).equal(pick(logits, 1., 0))

def test_penalty_of_a_code_that_no_longer_exists():
    "Histories may hold end codes and fillers; deeper levels never draw them."
    assert pick(torch.zeros(1, 6), 0., past=torch.tensor([[6, 12, -1]]), penalty=2.) == 0

@kinds
def test_penalty_by_level_and_row(kind):
    "Only the row's own history counts, and only at its level."
    head, emb = make(kind); hidden = torch.randn(1, 16).repeat(3, 1)
    free = head.sample(emb, hidden, 0.)[0]
    other = (free + 1) % 5; other[1] = free[1]   # has been drawn at level 2 alone
    past = [None, torch.stack([free, free]), other[None]]
    drawn = head.sample(emb, hidden, 0., past=past, penalty=1e6)
    assert drawn[0].equal(free) and drawn[1, 0] != free[0]
    assert drawn[2, 0] == free[0] and drawn[2, 1] != free[1]
    assert head.sample(emb, hidden, 0., past=past).equal(free.repeat(3, 1))   # off by default

def test_histories_of_a_batch():
    got = by_level([None, torch.tensor([[1, 2], [3, 4]]), torch.zeros(0, 2)], 2, torch.device('cpu'))
    assert got[0].tolist() == [[-1, -1], [1, 3], [-1, -1]] and got[1].tolist() == [[-1, -1], [2, 4], [-1, -1]]
    assert by_level(None, 3, torch.device('cpu')) == [None]*3

# ---- the staircase

@some
@given(st.integers(0, 12), st.integers(1, 9), st.integers(0, 99))
def test_delay_and_back(n, levels, seed):
    codes = torch.randint(0, 50, (n, levels), generator=torch.Generator().manual_seed(seed))
    rows = delay(codes, range(100, 100 + levels))
    assert rows.shape == (n + levels - 1, levels) and undelay(rows).equal(codes)
    for r in range(len(rows)):
        for l in range(levels): assert rows[r, l] == (codes[r - l, l] if 0 <= r - l < n else 100 + l)

@some
@given(st.integers(0, 10), st.integers(0, 99), st.sampled_from([0, 1, 3, 20]), st.sampled_from([ParallelHead, DelayHead]))
def test_a_stream_feeds_what_training_saw(n, seed, limit, kind):
    "Whatever the head draws in the corners: fed rows are the laid-out rows, frames are the frames, and it stops at the end or the limit."
    torch.manual_seed(seed); codes, head = frames(n), kind(4, SIZES, CFG)
    said = codes[:limit] if limit else codes
    end = torch.cat([codes, torch.tensor([[12, 0, 0, 0]])])
    lag = 3 if head.delayed else 0
    drawn = delay(end, [int(torch.randint(0, k, ())) for k in SIZES]) if lag else end
    stream, fed, got = FrameStream(head, limit), [], []
    while not stream.over:
        row, frame = stream.push(drawn[stream.row])
        if row is not None: fed.append(row)
        if frame is not None: got.append(frame)
    assert torch.stack(got).equal(said) if got else len(said) == 0
    want = delay(said, SIZES) if lag else said
    assert torch.stack(fed).equal(want) if fed else len(want) == 0

@pytest.fixture(scope='module')
def tok(): return train_tokenizer(['the cat sees a red ball. what is this?']*20)

@pytest.mark.parametrize('n', [0, 1, 5])
def test_speech_is_laid_out_in_a_staircase(tok, n):
    codes = frames(n)
    row = RowBuilder(tok, SIZES, delay=True).speak(codes, True, list(range(20, 20 + n))).done()
    assert len(row) == 1 + n + 3 + 1 and row.codes[1:-1].equal(delay(codes, SIZES))
    labels = row.code_labels[1:]   # rows and the end tag
    assert undelay(labels)[:n].equal(codes) and labels[n, 0] == 12 and (labels >= 0).sum() == 4*n + 1
    assert row.align.tolist() == [*range(20, 20 + n)] + [-100]*(len(row) - n) and (row.code_labels[0] == -100).all()
    silent = RowBuilder(tok, SIZES, delay=True).speak(codes, False).done()
    assert (silent.code_labels == -100).all() and silent.codes.equal(row.codes)

def test_speech_without_delay(tok):
    codes = frames(4); row = RowBuilder(tok, SIZES).speak(codes).done()
    assert row.codes[1:-1].equal(codes) and row.code_labels[1:].tolist() == [*codes.tolist(), [12, -100, -100, -100]]

@kinds
def test_trains_and_speaks_in_the_whole_model(tok, kind):
    "Through OmniForCausalLM.losses until it knows a row by heart, then row by row: it says that row again."
    cfg = preset('tiny'); cfg = replace(cfg, head=replace(cfg.head, kind=kind), llm=replace(cfg.llm, vocab_size=len(tok)))
    m, codes = OmniForCausalLM(cfg), torch.randint(0, 16, (5, 8))
    row = RowBuilder(tok, cfg.audio.codebook_sizes, delay=m.head.delayed).text('the cat').speak(codes).done()
    batch, opt = collate([row]), torch.optim.Adam(m.parameters(), 5e-3)
    for _ in range(120): out = m.losses(batch, 1.); opt.zero_grad(); (out['text'] + out['audio']).backward(); opt.step()
    assert out['levels'].shape == (8,) and out['levels'].max() < .2
    first, stream, said = int((row.codes[:, 0] >= 0).nonzero()[0]), FrameStream(m.head, 20), []
    x = m.eval().embed({k: batch[k][:, :first] for k in ('input_ids', 'codes')})
    with torch.no_grad():
        while not stream.over:
            h = m.llm.model(inputs_embeds=x, use_cache=False).last_hidden_state[:, -1]
            fed, frame = stream.push(m.head.sample(m.audio_embed, h, 0.)[0])
            if fed is not None: x = torch.cat([x, m.audio_embed(fed)[None, None]], 1)
            if frame is not None: said.append(frame)
    assert torch.stack(said).equal(codes)

# ---- the bench

@pytest.fixture
def rows(): return importlib.import_module('omni_lite.benches.head')

def test_bench_sees_a_wrong_code(rows):
    head, emb = make(); hidden = torch.randn(3, 16); a = head.sample(emb, hidden, 0.); b = a.clone(); b[1, 2] = (b[1, 2] + 1) % 5
    assert rows.same_draw(head, emb, hidden, a, a) and not rows.same_draw(head, emb, hidden, a, b)
    with torch.no_grad(): assert rows.same_draw(head, emb, hidden, a, rows.eight_passes(head, emb, hidden))

def test_bench_compares_equal_work(rows):
    made = [rows.loop_case('tiny', 16, SIZES, CFG), rows.kind_case('tiny', 16, SIZES, replace(CFG, kind='delay'), CFG),
            rows.train_case('tiny', 16, SIZES, replace(CFG, kind='parallel'), CFG, rows=8)]
    for case in made: assert case.agree(case.ours(), case.anchor()), case
