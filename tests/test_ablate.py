"""Ablations: same start and same steps for all arms, exact after an interruption, and conclusions that follow the figures."""
import json, math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from made import beeps
from omni_lite.config import LLMConfig, preset
from omni_lite.data.world import World
from omni_lite.evaluate import ablate as A, experiments as X
from omni_lite.omni.model import OmniForCausalLM
from omni_lite.omni.processor import OmniProcessor
from omni_lite.text import train_tokenizer
from omni_lite.train.stages import Stage, recipe
from omni_lite.train.trainer import StageRun, Workshop
from omni_lite.train.watch import answered, batch_of

WORLD = World('small')
TOK = train_tokenizer(l for l, _ in zip(WORLD.corpus(0), range(300)))
CFG = preset('tiny'); CFG = replace(CFG, llm=LLMConfig(len(TOK), 32, 2, 2, 2, 64))
LANG, SEE = Stage('lang', 'lm', dict(llm=3e-3), dict(text=1.), .5), Stage('1.2', 'lm', dict(llm=3e-3), dict(text=.5, turns=.5), .5)

def begin(seed):
    torch.manual_seed(seed)
    return OmniForCausalLM(CFG), OmniProcessor(TOK, CFG)

def no_start(seed):
    if seed: raise ValueError('nobody begins with this seed')
    return begin(seed)

TOY = A.Experiment('toy', 'does it?', {'A': A.Arm(), 'B, slow': A.Arm(trains={'1.2': dict(llm=1e-4)})}, (SEE,),
                   ('text loss', 'text right'), (LANG,), begin=begin)

def go(out, seeds=2, exp=TOY, **kw): return A.run_experiment(exp, out, seeds, **(dict(steps=8, world=WORLD, n=8, progress=False) | kw))

@pytest.fixture(scope='module')
def whole(tmp_path_factory): return go(tmp_path_factory.mktemp('whole')/'toy')

def test_every_run_is_there(whole):
    assert len(whole['rows']) == 2*2*2*2  # arms, seeds, before and after, metrics
    assert {(r['arm'], r['seed']) for r in whole['rows']} == {(a, s) for a in TOY.arms for s in (0, 1)}
    assert all(math.isfinite(r['value']) for r in whole['rows'])

def test_arms_of_a_seed_begin_alike_and_end_apart(whole):
    at = lambda when: A.values(whole['rows'], 'text loss', when)
    assert at('start')['A'] == at('start')['B, slow'] and at('start')['A'][0] != at('start')['A'][1]
    assert all(at('1.2')['A'][s] < at('1.2')['B, slow'][s] < at('start')['A'][s] for s in (0, 1))

@pytest.mark.parametrize('when', [3, 12, 20, 45])
def test_interrupted_and_called_again_gives_the_same_rows(whole, tmp_path, monkeypatch, when):
    "In the trunk, in an arm, in the next arm, with the second seed: each step is saved, and one is cut off."
    step, left = StageRun.one_step, [when]
    def cut(self):
        left[0] -= 1
        if not left[0]: raise KeyboardInterrupt
        return step(self)
    monkeypatch.setattr(StageRun, 'one_step', cut)
    with pytest.raises(KeyboardInterrupt): go(tmp_path/'toy', every=-1.)
    monkeypatch.setattr(StageRun, 'one_step', step)
    assert go(tmp_path/'toy')['rows'] == whole['rows']

def test_two_at_a_time_give_the_same_rows(whole, tmp_path):
    assert go(tmp_path/'toy', workers=2)['rows'] == whole['rows']

def test_a_fault_in_another_process_is_told(tmp_path):
    with pytest.raises(ValueError, match='nobody'): go(tmp_path/'toy', exp=replace(TOY, begin=no_start), workers=2)

def test_finished_runs_are_not_run_again(tmp_path, monkeypatch):
    first = go(tmp_path/'toy', 1)
    steps, step = [0], StageRun.one_step
    def count(self): steps[0] += 1; return step(self)
    monkeypatch.setattr(StageRun, 'one_step', count)
    assert go(tmp_path/'toy', 1)['rows'] == first['rows'] and steps == [0]
    assert go(tmp_path/'toy', 2)['rows'][:len(first['rows'])] == first['rows'] and steps == [3*8]  # trunk and two arms

def test_half_written_rows_are_no_finished_run(whole, tmp_path):
    go(tmp_path/'toy', 1)
    (at := tmp_path/'toy'/'A-seed0'/'rows.json').unlink(); (at.parent/'.rows.json.1.part').write_text('[')
    assert go(tmp_path/'toy', 1)['rows'] == [r for r in whole['rows'] if r['seed'] == 0]

def test_three_files_beside_the_folder(tmp_path):
    results = go(tmp_path/'toy', 1)
    assert json.loads((tmp_path/'toy.json').read_text()) == json.loads(json.dumps(results))
    assert all(c in (tmp_path/'toy.md').read_text() for c in ('does it?', 'B, slow', 'one seed cannot tell'))
    assert (tmp_path/'toy.png').read_bytes()[:4] == b'\x89PNG'
    assert {'torch', 'machine', 'commit', 'cpus'} <= set(results['facts']) and results['steps'] == {'lang': 8, '1.2': 8}

def test_another_budget_is_another_folder(tmp_path):
    go(tmp_path/'toy', 1)
    with pytest.raises(ValueError, match='was begun with .* name another folder'): go(tmp_path/'toy', 1, steps=9)

def test_a_budget_in_time_becomes_steps_by_share(tmp_path, monkeypatch):
    monkeypatch.setattr(A, 'pace', lambda shop, stage: {'lang': .1, '1.2': .2}[stage.name])
    lab = A.Lab(replace(TOY, stages=(SEE, replace(SEE, name='2', share=1.5))), tmp_path, WORLD, progress=False)
    monkeypatch.setattr(A, 'pace', lambda shop, stage: {'lang': .1}.get(stage.name, .2))
    lab.make_plan(40.)
    assert lab.plan['steps'] == {'lang': 100, '1.2': 50, '2': 150}

def test_unknown_names_are_one_sentence():
    with pytest.raises(ValueError, match="^no experiment is named 'txt': there are text-ratio, ") as e: X.ablate_command('txt')
    assert '\n' not in str(e.value)
    with pytest.raises(ValueError, match='0 seeds are none'): X.ablate_command('heads', 0)
    with pytest.raises(ValueError, match=r"changes the stages \['9'\], which it does not run"):
        go('nowhere', exp=replace(TOY, arms={'A': A.Arm({'9': {}})}))

def test_pure_text_has_the_wanted_share():
    for r in (0., .2, .6):
        for name in ('1.2', '2.2'):
            was, mix = X.ROW[name].mixture, X.with_text(X.ROW[name].mixture, r)
            assert math.isclose(sum(v for k, v in mix.items() if k in X.TEXT), r, abs_tol=1e-9)
            assert math.isclose(sum(mix.values()), 1., abs_tol=1e-9)
            assert math.isclose(mix['picture']/mix['clip'], was['picture']/was['clip'])
    assert X.with_text(X.ROW['1.2'].mixture, .4) == pytest.approx(X.ROW['1.2'].mixture)

def test_the_experiments_differ_only_in_what_they_ask():
    for exp in X.EXPERIMENTS.values():
        assert not set(exp.metrics) - set(A.METRICS)
        for arm in exp.arms.values():
            for s in exp.stages_of(arm): assert not s.mixture or math.isclose(sum(s.mixture.values()), 1., abs_tol=1e-6), (exp.name, s.name)
    a, b = (X.EXPERIMENTS['interleaved'].stages_of(x) for x in X.EXPERIMENTS['interleaved'].arms.values())
    assert [s.trains for s in a] == [s.trains for s in b] and a[2:] == b[2:]
    assert not {'hear', 'say'} & (set(b[0].mixture) | set(b[1].mixture)) and not {'intlv', 'itts'} & set(a[0].mixture)

def test_another_head_keeps_the_rest():
    m, p = A.changed(*begin(0), dict(head=dict(kind='delay')))
    assert type(m.head).__name__ == 'DelayHead' and p.builder.delay
    old = begin(0)[0].state_dict()
    assert all(torch.equal(v, old[k]) for k, v in m.state_dict().items() if not k.startswith('head.'))

def test_interval_is_students():
    from scipy import stats
    for n in (2, 3, 5, 11):
        x = np.random.default_rng(n).normal(size=n)
        low, high = stats.t.interval(.95, n - 1, x.mean(), stats.sem(x))
        assert A.interval(x.tolist()) == pytest.approx((x.mean(), low, high), abs=1e-3)
    assert A.interval([1.]) == (1., None, None)

def fake(metric, *arms): # values per seed of each arm
    return [dict(arm=f'arm {i}', seed=s, after='2', metric=metric, value=v) for i, a in enumerate(arms) for s, v in enumerate(a)]

@pytest.mark.parametrize('metric,other,said', [('text loss', [.1, 1.1, 2.12], 'better'), ('text right', [.1, 1.1, 2.12], 'worse'),
    ('text loss', [1.9, 2.9, 3.88], 'worse'), ('text loss', [.5, 2.6, 2.9], 'not told apart'), ('text loss', [1, 2, 3], 'not told apart')])
def test_conclusions_follow_the_figures_either_way(metric, other, said):
    told = A.conclusions(fake(metric, [1, 2, 3], other))
    assert len(told) == 1 and told[0].endswith(': ' + said) and told[0].startswith(f'{metric} after 2: arm 1 against arm 0')

def test_seeds_are_compared_in_pairs():
    "Seeds far apart, arms a little: only the paired difference sees it."
    rows = fake('text loss', [1., 5., 9.], [.9, 4.9, 8.89])
    (_, low, high), (mean, dlow, dhigh) = A.interval([.9, 4.9, 8.89]), A.differences(rows, 'text loss', '2')['arm 1']
    assert low < 1. < high and dlow < mean < dhigh < 0

def test_a_right_answer_counts_whole():
    "The model's own likeliest answers are right; with one token changed they are not."
    shop = Workshop(*begin(0), WORLD, None, progress=False)
    p, rows = A.Probe(shop, 8), None
    rows = p.typed('text')[:4]
    for _ in range(40):  # token by token towards what the model itself would write
        batch = batch_of(p.model, rows)
        with torch.no_grad(): said = p.model.llm.lm_head(p.model.hidden(batch)).argmax(-1)
        for r, s in zip(rows, said):
            at = (r.labels >= 0).nonzero()[:, 0]
            r.labels[at] = s[at - 1]; r.ids[at] = s[at - 1]
    assert answered(p.model, rows) == 1.
    for r in rows[:1]: at = (r.labels >= 0).nonzero()[-1, 0]; r.labels[at] = (r.labels[at] + 1) % len(TOK)
    assert answered(p.model, rows) == .75

def test_the_judge_hears_what_was_written(monkeypatch):
    "A scripted model and judge: agreement is the word error rate between text and speech."
    shop = Workshop(*begin(0), WORLD, None, progress=False)
    p = A.Probe(shop, 20)
    p.model = SimpleNamespace(generate=lambda *a, **kw: ('a red bus.', np.ones(100, np.float32), dict(rtf=.5)))
    heard = iter(['a red bus', 'a red bus', 'a bed bus', 'red bus'])
    monkeypatch.setattr(A, 'listen', lambda w: next(heard))
    assert p.agreement() == pytest.approx(2/12) and p.speed() == .5

def test_without_speech_its_metrics_are_left_out():
    shop = Workshop(*begin(0), WORLD, None, progress=False)
    assert set(A.measure(shop, tuple(A.METRICS), 4, True)) == {'text loss', 'text right', 'picture loss', 'picture right'}

# ---- experiments on the codec

@pytest.fixture(scope='module')
def store(tmp_path_factory): return beeps(tmp_path_factory.mktemp('store'))

def levels(exp='levels', **kw):
    arms = {k: A.Arm(config=dict(audio=dict(codebook_sizes=(16,)*n))) for k, n in (('2 levels', 2), ('3 levels', 3))}
    return A.Experiment(exp, 'how many?', arms, (next(s for s in recipe() if s.name == 'tokenizer'),),
                        ('dictation loss', 'copy WER', 'mel error', 'copy MOS', 'books in use', 'bits per second'), begin=begin, **kw)

def test_tokenizers_of_any_depth_are_trained_and_judged(store, tmp_path, monkeypatch):
    monkeypatch.setattr(A, 'fetched', lambda name: None); monkeypatch.setattr(A, 'find_spec', lambda name: None)
    r = go(tmp_path/'levels', 1, levels(), steps=3, store=store)
    got = {(x['arm'], x['metric']): x['value'] for x in r['rows']}
    assert {m for _, m in got} == {'dictation loss', 'mel error', 'books in use', 'bits per second'}  # no judge, no DistillMOS
    assert {x['after'] for x in r['rows']} == {'tokenizer'} and all(math.isfinite(v) for v in got.values())
    assert got['2 levels', 'dictation loss'] == pytest.approx(math.log(len(TOK)), abs=1.)
    log = [json.loads(l) for l in (tmp_path/'levels'/'3-levels-seed0'/'log.jsonl').read_text().splitlines()]
    assert log[-1]['step'] == 3 and 'transcript' in log[-1]

def test_all_depths_of_a_seed_begin_with_one_encoder():
    arms = [A.changed(*begin(0), a.config)[0].tokenizer for a in levels().arms.values()]
    assert [t.rvq.n_q for t in arms] == [2, 3]
    a, b = (t.state_dict() for t in arms)
    assert all(torch.equal(v, b[k]) for k, v in a.items() if not k.startswith('rvq.'))

def test_settings_of_a_finished_model_need_no_training(store, tmp_path, monkeypatch):
    steps, heard = [], []
    monkeypatch.setattr(StageRun, 'one_step', lambda self: steps.append(1))
    def through(way, clips, rulers, hear):
        heard.append((way.about['flow'], way.make(clips[0].wav)[0]))
        return dict(mel=float(len(heard)), rtf=.5, entropy_bps=1.), None
    monkeypatch.setattr(A, 'through', through)
    exp = A.Experiment('settings', 'which?', {k: A.Arm(config=dict(flow=dict(steps=n))) for k, n in (('1', 1), ('4', 4))}, (),
                       ('mel error, flow', 'codec real-time factor'), begin=begin)
    r = go(tmp_path/'settings', 2, exp, store=store)
    assert not steps and {x['after'] for x in r['rows']} == {'start'} and len(r['rows']) == 2*2*2 and r['steps'] == {}
    sounds = [w for _, w in heard]
    assert [f for f, _ in heard] == [True]*4 and not np.allclose(sounds[0], sounds[1])  # another number of steps

def test_half_way_a_tokenizer_has_codes(store, tmp_path):
    "The pace is taken with all that a stage switches on later."
    lab = A.Lab(levels(), tmp_path, WORLD, store, progress=False); lab.plan = dict(tokens=64, frames=40)
    shop = lab.shop(0)
    assert shop.codes is None and not shop.model.tokenizer.rvq.books[0].started
    A.pace(shop, levels().stages[0], 1)
    assert shop.model.tokenizer.rvq.books[0].started

@pytest.mark.skipif(not (A.root()/'results').is_dir(), reason='no results are kept here')
def test_kept_results_can_be_read():
    for file in (A.root()/'results').glob('*.json'):
        r = json.loads(file.read_text())
        if r.get('experiment') not in X.EXPERIMENTS: continue
        assert r['summary'] == A.summary(r['rows']) and file.with_suffix('.md').read_text() == A.markdown(r)
