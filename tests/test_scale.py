"""Two processes learn what one learns: DDP, FSDP2, their checkpoints, and the recipes that start them."""
import dataclasses, os, re, subprocess, sys
from pathlib import Path
import pytest, torch

from omni_lite.config import preset
from omni_lite.omni.model import OmniForCausalLM
from omni_lite.train import scale as S

ROOT = Path(__file__).resolve().parent.parent
STEPS, HALF = 20, 10
sys.path.insert(0, str(ROOT/'tests'))
import scale_work as W

@pytest.fixture(scope='module')
def two(tmp_path_factory):
    "Everything that needs two processes, in one start of them."
    out = tmp_path_factory.mktemp('scale')
    env = {**os.environ, 'PYTHONPATH': f'{ROOT}{os.pathsep}{ROOT/"tests"}', 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    run = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', str(ROOT/'tests'/'scale_work.py')]
    done = subprocess.run([*run, str(out)], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return out

@pytest.fixture(scope='module')
def one():
    "The same training in one process: losses and model."
    return W.train('none')

def close(a, b, what):
    far = max(abs(x - y) for x, y in zip(a, b))
    assert len(a) == len(b) and far < 1e-5, f'{what}: {far}'

@pytest.mark.parametrize('how', ['ddp', 'fsdp2'])
def test_losses_and_weights_equal_one_process(two, one, how):
    found = torch.load(two/f'{how}.pt')
    assert [r.keys() for r in found['log']] == [r.keys() for r in one[0]], 'the same terms at every step'
    for name in one[0][0]: close([r.get(name, 0.) for r in found['log']], [r.get(name, 0.) for r in one[0]], f'{how} {name}')
    assert all(found['same']), 'the processes report different numbers'
    want = one[1].state_dict()
    assert found['model'].keys() == want.keys()
    for k in want: torch.testing.assert_close(found['model'][k], want[k], rtol=0, atol=2e-5, msg=lambda m: f'{k}: {m}')
    moved = [k for k, v in W.model().state_dict().items() if not torch.equal(v, want[k])]
    for part in ('llm.', 'eye.', 'bridge.', 'head.', 'audio_embed.'): assert any(k.startswith(part) for k in moved), part

def test_mean_of_means_would_be_seen(one):
    "The comparison above can fail: without the counts the very first loss is off."
    m = W.model(); first = one[0][0]['text']
    plain = sum(m.losses(W.part(W.batch(0), r), deep_share=1.)['text'].item() for r in range(2)) / 2
    assert abs(plain - first) > 1e-3

def test_two_processes_go_on_as_one(two, one):
    "Ten steps on two shards, then ten in one process: the losses of a run that never stopped."
    log, m = W.train('none', resume=two/'sharded')
    assert len(log) == STEPS - HALF
    close([r['loss'] for r in log], [r['loss'] for r in one[0][HALF:]], 'resumed')
    for k, v in one[1].state_dict().items(): torch.testing.assert_close(m.state_dict()[k], v, rtol=0, atol=2e-5, msg=lambda s: f'{k}: {s}')

def test_one_process_goes_on_as_two(two, one):
    found = torch.load(two/'resumed.pt')
    close(found, [r['loss'] for r in one[0][HALF:]], 'resumed on two')

def test_ordinary_folder(two, tmp_path):
    "Collected while running, or converted later: the same folder."
    later = tmp_path/'later'; S.convert(two/'sharded', later, half=False)
    a, b = (OmniForCausalLM.from_pretrained(p).state_dict() for p in (two/'whole', later))
    full = torch.load(two/'fsdp2-half.pt')
    for k in full:
        if k.endswith(('embed_avg', 'cluster_size', 'started')): continue
        assert torch.equal(a[k], full[k]) and torch.equal(b[k], full[k]), k

def test_stages_share_the_shards(two):
    "Bridge and head alone, then the LLM alone, on the same shards in bf16, with the trainer's optimiser; nothing else moves."
    found, want = torch.load(two/'stages.pt'), W.stages('none')
    assert found['first'] == want['first'] == ['bridge', 'head'] and found['second'] == want['second'] == ['llm']
    assert max(abs(a - b) for a, b in zip(found['losses'], want['losses'])) < .2

def test_matrices_dealt_out_move_as_in_one_process(two):
    "Each process moves its own matrices and passes them on: the same weights everywhere, the losses of one process."
    found = torch.load(two/'dealt.pt'); log, m, _ = W.muon('none')
    assert found['hands'] == found['moved'] and min(found['hands']) > 0 and sum(found['hands']) > max(found['hands'])
    a, b = found['weights']
    assert all(torch.equal(a[k], b[k]) for k in a)
    close(found['log'], log, 'dealt')
    for k, v in m.state_dict().items(): torch.testing.assert_close(a[k], v, rtol=0, atol=1e-3, msg=lambda s: f'{k}: {s}')

def test_muon_goes_on_exactly(two):
    "An optimiser of two parts, its rates set from outside after loading."
    whole, resumed = torch.load(two/'muon.pt')
    assert resumed == whole[2:]
    assert max(abs(a - b) for a, b in zip(whole, W.muon('none')[0])) < 1e-2  # bf16 inside, on other pieces

def test_tied_embeddings(two):
    found = torch.load(two/'tied.pt')
    log, m = W.train('none', steps=2, tie=True)
    close(found['loss'], [r['loss'] for r in log], 'tied')
    assert found['tied']

@pytest.mark.parametrize('how', ['ddp', 'fsdp2'])
def test_the_trainer_goes_on_exactly(two, how):
    "Two stages of the recipe by two processes, stopped in the second and started again, against the same without a stop."
    whole, part, stopped, refused = torch.load(two/f'trainer-{how}.pt', weights_only=False)
    assert stopped and whole['weights'].keys() == part['weights'].keys()
    for k, v in whole['weights'].items(): assert torch.equal(v, part['weights'][k]), k
    assert [r['text_loss'] for r in whole['results']] == [r['text_loss'] for r in part['results']]
    assert whole['results'][1]['text_loss'] != whole['results'][0]['text_loss']
    assert whole['logs'] == ['log.jsonl'] and len(set(whole['drawn'])) == 2, 'the processes drew the same rows'
    if how == 'ddp': assert refused == 'the run was kept by 2 processes and these are 3: start as many'

def test_many_processes_need_a_way():
    "Without --parallel each would train its own model."
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', '-m',
        'omni_lite.cli', 'train', '--out', '/nowhere'], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode and '2 processes would each train a model of their own: add --parallel ddp or fsdp2' in done.stderr
    assert 'Traceback' not in done.stderr.split('omni-lite:')[0]

def test_refusals():
    m = W.model()
    for kw, said in ((dict(how='fsdp'), "no parallelism 'fsdp': choose none, ddp, fsdp2"), (dict(how='ddp'), 'torchrun'),
                     (dict(how='none', context=2), 'CUDA only')):
        with pytest.raises(ValueError, match=said): S.parallelize(m, **kw)
    with pytest.raises(ValueError, match='no sharded run'): S.load_sharded(ROOT/'tests', m, torch.optim.AdamW(m.parameters()))

def test_a_killed_save_leaves_the_last_one(tmp_path):
    m = W.model(); opt = torch.optim.AdamW(m.parameters(), 1e-3)
    S.save_sharded(tmp_path/'run', m, opt, step=3)
    (tmp_path/'run.part').mkdir(); (tmp_path/'run.part'/'__0_0.distcp').write_text('half')
    assert S.load_sharded(tmp_path/'run', m, opt) == dict(step=3)
    S.save_sharded(tmp_path/'run', m, opt, step=4)
    assert S.load_sharded(tmp_path/'run', m, opt) == dict(step=4) and not (tmp_path/'run.part').exists()

def test_checkpointing_changes_no_gradient():
    grads = []
    for on in (False, True, False):
        m = W.model(); S.checkpoint_blocks(m, True); S.checkpoint_blocks(m, on)
        assert ('forward' in m.llm.model.layers[0].__dict__) == on
        S.Losses(m)(W.batch(0), deep_share=1.)['loss'].backward()
        grads.append([p.grad for p in m.parameters() if p.grad is not None])
    for other in grads[1:]: assert all(torch.equal(a, b) for a, b in zip(grads[0], other))
    assert list(m.state_dict()) == list(W.model().state_dict())

def test_blank_row_moves_nothing():
    m = W.model(); b = W.part(W.batch(0), 1)
    full = S.add_blank(b, {'audio', 'seen'}, m)
    x, y = m.losses(b), m.losses(full)
    torch.testing.assert_close(x['text'], y['text']); torch.testing.assert_close(x['align'], y['align'])
    assert len(full['input_ids']) == len(b['input_ids']) + 1 and 'audio' in y and (full['labels'][-1] == -100).all()
    assert S.add_blank(b, set(), m) is b

@pytest.mark.parametrize('name', ['tiny', 'nano', '7b'])
def test_each_weight_is_in_one_unit(name):
    with torch.device('meta'): m = OmniForCausalLM(preset(name))
    seen = [id(p) for u in S.shard_units(m)[:-3] for mod in u for p in mod.parameters()]
    assert len(seen) == len(set(seen))
    held = {how: S.rank_bytes(m, how, 8) for how in ('ddp', 'fsdp2')}
    assert held['fsdp2']['gradients']*8 == held['ddp']['gradients']

# ---- the recipes

RECIPES = ROOT/'recipes'
SCRIPTS = sorted([*RECIPES.glob('*.sh'), *RECIPES.glob('*.sbatch')])

def options(command):
    "Flags of a command of ours."
    import typer
    from omni_lite.cli import app
    return {o for p in typer.main.get_command(app).commands[command].params for o in (*p.opts, *p.secondary_opts)}

def test_recipes_are_found(): assert len(SCRIPTS) >= 4 and (RECIPES/'README.md').is_file()

@pytest.mark.parametrize('path', SCRIPTS, ids=lambda p: p.name)
def test_shell_parses(path):
    done = subprocess.run(['bash', '-n', str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

def calls(path):
    "Our commands in a recipe: (launcher's flags, command, our flags)."
    lines = re.sub(r'\\\n\s*', ' ', path.read_text()).splitlines()
    for line in lines:
        line = re.sub(r'(^|\s)#.*', '', line)
        if m := re.search(r'(torchrun|accelerate launch)(.*?)-m omni_lite\.cli (\w+)(.*)', line):
            flags = [set(re.findall(r'(?<=\s)--[\w-]+', t)) for t in (m[2], m[4])]
            yield m[1], flags[0], m[3], flags[1]

@pytest.mark.parametrize('path', SCRIPTS, ids=lambda p: p.name)
def test_flags_are_ours(path):
    found = list(calls(path))
    assert found
    for _, _, command, flags in found: assert flags <= options(command), flags - options(command)

@pytest.mark.parametrize('path', SCRIPTS, ids=lambda p: p.name)
def test_launcher_flags(path):
    from torch.distributed.run import get_args_parser
    known = {o.replace('_', '-') for a in get_args_parser()._actions for o in a.option_strings}
    for name, flags, _, _ in calls(path):
        known_here = known if name == 'torchrun' else {'--config-file'}
        assert {f.replace('_', '-') for f in flags} <= known_here, flags

def test_accelerate_config():
    import yaml
    from accelerate.commands.config.config_args import ClusterConfig
    cfg = yaml.safe_load((RECIPES/'accelerate.yaml').read_text())
    assert set(cfg) <= {f.name for f in dataclasses.fields(ClusterConfig)}
    assert ClusterConfig.from_yaml_file(RECIPES/'accelerate.yaml').num_processes == cfg['num_processes']
