"""The planner: a step without numbers takes the bytes and operations of a step with numbers."""
import math
from collections import Counter
from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from torch import nn

from omni_lite import plan as P
from omni_lite.config import preset
from omni_lite.omni.model import OmniForCausalLM
from omni_lite.train.scale import rank_bytes
from omni_lite.train.stages import Stage, melt, recipe

ROWS = {s.name: s for s in recipe('tiny')}

@pytest.fixture(autouse=True)
def one_thread(): torch.set_num_threads(1)

@pytest.mark.parametrize('name', ['lang', 'eye', 'tokenizer', 'flow', 'vocoder', '2.1', '3', '4.1'])
def test_peak_is_the_allocators(name):
    "Within 10 %: which frames train the deeper levels is drawn, and kernels may take a little for themselves."
    step, held = P._real('tiny', ROWS[name])
    assert P.shadow_step('tiny', ROWS[name]).peak == pytest.approx(held + P._peak(step), rel=.1)

def test_the_comparison_would_see_missing_activations():
    bill = P.shadow_step('tiny', ROWS['3'])
    assert bill.peak - bill.activations < .7 * bill.peak

def linear(batch=5, a=7, b=11):
    sh = P.Shadow()
    with torch.device('meta'): net = nn.Linear(a, b)
    P.shadow_of(net, sh.fake); x = sh.fake.from_tensor(torch.zeros(batch, a))
    return sh, net, x

def test_operations_of_a_layer_by_hand():
    sh, net, x = linear()
    with sh: net(x).sum().backward()
    assert sh.books.flops == Counter(float32=2 * 2*5*7*11), 'forward, and the gradient of the weight; the input wants none'
    sh, net, x = linear(); x.requires_grad_(True)
    with sh: net(x).sum().backward()
    assert sh.books.flops.total() == 3 * 2*5*7*11
    sh, net, x = linear(); net.requires_grad_(False)
    with sh: net(x)
    assert sh.books.flops.total() == 2*5*7*11

def test_bytes_of_a_layer_by_hand():
    sh, net, x = linear(); sh.hold(*net.parameters(), x); at = 4*(7*11 + 11 + 5*7)
    assert sh.now == at
    with sh:
        y = net(x); assert sh.now == at + 4*5*11
        del y
    assert sh.now == at and sh.peak == at + 4*5*11

def test_integers_keep_their_numbers():
    sh, net, x = linear()
    with sh:
        rows = torch.tensor([True, False, True, True, False])
        assert rows.any() and net(x)[rows].shape == (3, 11) and x.new_zeros(5, 2).masked_scatter(rows[:, None], x[rows][:, :2]).shape == (5, 2)

def test_a_large_mask_takes_no_memory():
    with P.Shadow():
        ids = torch.zeros(1, 50_000, dtype=torch.long)
        assert isinstance(ids[:, :, None] == ids[:, None], P.FakeTensor)

@pytest.mark.parametrize('name, stage', [('nano', '4.2'), ('lite', '1.1')])
def test_trained_weights_are_those_of_the_row(name, stage):
    with torch.device('meta'): m = OmniForCausalLM(preset(name))
    row = next(r for r in recipe(name) if r.name == stage)
    bill = P.shadow_step(name, row, P.Setup(rows=1, context=256)); want = sum(p.numel() for ps in melt(m, row).values() for p in ps)
    assert bill.trained == want and bill.gradients == 4*want and 4*want <= bill.optimiser <= 8*want + 4*10_000

def test_checkpointing_trades_memory_for_operations():
    how = P.Setup(rows=8, context=128)
    plain, again = P.shadow_step('nano', ROWS['3'], how), P.shadow_step('nano', ROWS['3'], replace(how, checkpointing=True))
    assert again.activations < .8 * plain.activations and again.books.flops.total() > 1.1 * plain.books.flops.total()
    assert again.gradients == plain.gradients and again.weights == plain.weights

def test_bf16_shrinks_activations_and_moves_products():
    how = P.Setup(rows=8, context=128)
    full, low = P.shadow_step('nano', ROWS['1.2'], how), P.shadow_step('nano', ROWS['1.2'], replace(how, precision='bf16'))
    assert low.activations < full.activations and low.weights == full.weights
    assert set(full.books.flops) == {'float32'} and low.books.flops['bfloat16'] > 10 * low.books.flops['float32']

# ---- several devices

ALL = Stage('3', 'lm', {k: 1e-3 for k in ('llm', 'bridge', 'eye', 'audio_embed', 'head')})

@lru_cache
def one_process(parallel): return P.shadow_step('nano', ALL, P.Setup(1, 'h100', parallel, rows=2, context=64))

def shared(n, parallel='none'):
    return P.sharing(one_process(parallel if parallel == 'fsdp2' else 'none'), preset('nano'), ALL, P.Setup(n, 'h100', parallel))

def test_shards_agree_with_what_a_process_holds():
    "The bytes that scale.rank_bytes counts, up to rows that do not divide."
    with torch.device('meta'): m = OmniForCausalLM(preset('nano'))
    for n in (2, 8):
        want, got = rank_bytes(m, 'fsdp2', n), shared(n, parallel='fsdp2')
        assert got.weights == pytest.approx(want['weights'], rel=.02) and got.gradients == pytest.approx(want['gradients'], rel=.02)
        assert got.gathered > want['gathered'], 'one more unit on its way, and gradients before they are scattered'

def test_ddp_holds_buckets_and_sends_twice_the_gradients():
    alone, two = shared(1), shared(2, parallel='ddp')
    assert two.peak == alone.peak + alone.gradients and two.buckets == two.gradients
    assert two.sent == two.gradients and shared(64, parallel='ddp').sent == pytest.approx(2*two.gradients, rel=.02)

def test_the_codec_is_whole_under_fsdp2():
    how = P.Setup(8, 'h100', 'fsdp2'); bill = P.shadow_step('tiny', ROWS['vocoder'], how)
    assert P.sharing(bill, preset('tiny'), ROWS['vocoder'], how).weights == bill.weights

# ---- time

def books(half=0., full=0.): return P.Books(Counter(bfloat16=half, float32=full))

def test_time_is_operations_over_rate_or_bytes_over_link():
    bill = P.Bill('x', 1, 1, 0, 0, 0, 0, 0, books(half=P.DEVICES['h100'].bf16 * P.EFFICIENCY), books())
    how = P.Setup(8, 'h100', 'ddp')
    assert P.step_seconds(bill, how) == pytest.approx(1.)
    assert P.step_seconds(replace(bill, update=books(full=P.DEVICES['h100'].fp32 * P.EFFICIENCY)), how) == pytest.approx(2.)
    assert P.step_seconds(replace(bill, sent=3 * P.DEVICES['h100'].link), how) == pytest.approx(3.)
    assert P.step_seconds(replace(bill, books=P.Books(ops=round(4/P.LAUNCH))), how) == pytest.approx(4.)

def test_time_of_this_machine_is_a_sum():
    speeds, cost = dict(float32=2., bfloat16=4., moved=8., calls=4.), (1., 2., 3., .5)
    done = P.Books(Counter(bfloat16=4., float32=6.), 16., 2)
    assert P.cpu_seconds(done, speeds, cost) == 1*6/2 + 2*4/4 + 3*16/8 + .5*2/4
    assert all(v > 0 for v in P.cpu_speeds().values())

def test_a_plan_counts_steps_from_tokens():
    how = P.Setup(4, 'a100', 'ddp', rows=2, context=128, accumulate=3)
    row = P.plan_stage('nano', ROWS['1.1'], how, tokens=1e5)
    steps = math.ceil(1e5 / (4*2*128*3))
    assert row['positions'] == 4*2*128*3 and row['tokens'] == steps*row['positions'] and row['seconds'] == pytest.approx(steps*row['step'])
    once = P.plan_stage('nano', ROWS['1.1'], replace(how, accumulate=1), tokens=1e5)
    assert once['step'] < row['step'] < 3*once['step'], 'three batches, one update'

def test_measured_beside_computed():
    "The whole way on the smallest rung; what the times are is nobody's business here."
    row = next(P.measure_stages('tiny', '1.1', 3))
    assert row['peak_ratio'] == pytest.approx(1., abs=.1) and row['seconds'] > 0 and len(row['times']) == 3
    assert row['seconds_ratio'] > 0 and row['spread'][0] <= row['seconds'] <= row['spread'][1]

# ---- what is printed, what is refused

def test_the_table(capsys):
    P.plan_command('tiny', device='l4', stage='lang', tokens=1e6)
    out = capsys.readouterr().out
    assert 'lang       llm' in out and '1 M' in out and 'stated: l4, 24 GB, 121 TFLOPS' in out and 'assumed: 40 %' in out and 'activations' in out

def test_what_does_not_fit_is_marked(capsys):
    rows = [dict(stage='x', trains=['llm'], trainable=1, memory=9e12, fits=False, positions=8, step=1., tokens=0, seconds=0., bill=None)]
    P._table(rows, [ROWS['lang']])
    assert '9000.000 GB!' in (out := capsys.readouterr().out) and 'does not fit' in out and f'{100*ROWS["lang"].share:.0f} % of the time' in out

def test_a_row_without_a_budget_says_so(): assert 'give --tokens' in P._line(
    dict(stage='x', trains=['llm'], trainable=1, memory=1., fits=True, positions=8, step=1., tokens=0, seconds=0.), recipe('7b')[0])

@pytest.mark.parametrize('kw, says', [
    (dict(device='abacus'), "no device 'abacus': choose cpu, h100"), (dict(parallel='fsdp'), "no parallelism 'fsdp'"),
    (dict(precision='fp8'), "no precision 'fp8'"), (dict(devices=4), "4 devices do nothing together"), (dict(devices=0), 'give 1 or more'),
    (dict(rows=-1), 'give 1 or more'), (dict(stage='9'), 'tiny has no stage 9: choose of lookup'), (dict(preset='70b'), "no recipe for '70b'"),
    (dict(preset='7b', measure=True), '7b is too large to measure here')])
def test_one_sentence(kw, says):
    with pytest.raises(ValueError, match=says): P.plan_command(**(dict(preset='tiny') | kw))

def test_a_set_nobody_described():
    with pytest.raises(ValueError, match='what a row of jokes holds is not known'):
        P.shadow_step('tiny', Stage('x', 'lm', dict(llm=1e-3), dict(jokes=1.)))

def test_what_rows_hold_is_known_for_every_set():
    for name in ('nano', 'lite', '7b'): assert not {k for s in recipe(name) for k in s.mixture} - set(P.HOLDS)

def test_a_stage_that_is_not_trained_here():
    with pytest.raises(ValueError, match='the mel decoder of the release is not trained here'):
        P.shadow_step('7b', ROWS['tokenizer'])
