"""What test_scale.py runs in one and in two processes: toy batches, a training loop that knows only `parallelize`."""
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from omni_lite.config import preset, replace
from omni_lite.omni.model import OmniForCausalLM
from omni_lite.train import scale as S
from omni_lite.train.stages import Stage, freeze

STEPS, HALF = 20, 10

def model(tie=False, dim=32):
    torch.manual_seed(0); cfg = preset('tiny')
    cfg = replace(cfg, llm=replace(cfg.llm, tie=tie, dim=dim, ffn_dim=2*dim))
    return OmniForCausalLM(cfg).train()

def batch(seed, T=14, L=8):
    "Four rows; by turns the second process lacks pictures, speech, a word in progress, and text labels differ in number."
    g = torch.Generator().manual_seed(seed); draw = lambda hi, *size: torch.randint(0, hi, size, generator=g)
    ids = 20 + draw(70, 4, T); labels, align = torch.full((4, T), -100), torch.full((4, T), -100)
    codes, said, see = torch.full((4, T, L), -1), torch.full((4, T, L), -100), torch.zeros(4, T, dtype=torch.bool)
    for row, n in enumerate((3, 8, 1, 5)): labels[row, -n:] = ids[row, -n:]
    for row in ((1,), (1, 2), (), (2,))[seed % 4]:
        codes[row, 3:7] = draw(16, 4, L); said[row, 3:7 if row == 1 else 5] = codes[row, 3:7 if row == 1 else 5]
        said[row, 7 if row == 1 else 5] = torch.tensor([16] + [0]*(L - 1))
    align[2, 4:6 + seed % 3] = ids[2, 4:6 + seed % 3]
    seen = ((0, 3), (0,), (), (3,), (0, 3))[seed % 5]
    for row in seen: see[row, 9:11] = True
    return dict(input_ids=ids, labels=labels, codes=codes, code_labels=said, align=align, see=see, files=[],
                patches=torch.randn(8*len(seen), 588, generator=g) if seen else None, grids=[(1, 2, 4)]*len(seen))

def part(b, rank):
    "Two of the four rows, with their pictures."
    rows, n = slice(2*rank, 2*rank + 2), int(b['see'][:2].any(1).sum())
    cut = slice(0, n) if rank == 0 else slice(n, None)
    whole = {k: v[rows] for k, v in b.items() if k not in ('patches', 'grids', 'files')}
    grids = b['grids'][cut]
    patches = b['patches'].view(-1, 8, 588)[cut].reshape(-1, 588) if grids else None
    return whole | dict(patches=patches, grids=grids, files=[])

def mine(i): return batch(i) if not dist.is_initialized() else part(batch(i), dist.get_rank())
def step(run, params, opt, i, **kw):
    out = run(mine(i), deep_share=1., **kw)
    opt.zero_grad(); out['loss'].backward()
    torch.nn.utils.clip_grad_norm_(params, .5); opt.step()
    return {k: v.item() for k, v in out.items() if v.ndim == 0}

def train(how, steps=STEPS, tie=False, resume=None, save=None, opt=None):
    m = model(tie)
    if resume: torch.manual_seed(7); [p.data.normal_() for p in m.parameters()]
    run = S.parallelize(m, how, checkpointing=how == 'fsdp2')
    params = list(m.parameters()); opt = torch.optim.AdamW(params, 5e-4, eps=1e-6)
    first = S.load_sharded(resume, m, opt)['step'] if resume else 0
    log = []
    for i in range(first, steps):
        log.append(step(run, params, opt, i))
        if save and i == HALF - 1: save(m, opt)
    return log, m

def muon(how, resume=None, save=None):
    "Four steps of the trainer's optimiser with a rate set from outside; saved after two."
    from omni_lite.train.muon import MuonAdamW
    m = model(dim=64); run = S.parallelize(m, how)  # wide enough for Muon
    alike = dict(hands=S.world_size(), me=S.rank()) if how == 'ddp' else {}
    params = list(m.parameters()); opt, log = MuonAdamW([dict(params=params, lr=1e-3)], **alike), []
    assert len(opt.parts) == 2
    if resume: step(run, list(m.parameters()), opt, 9); S.load_sharded(resume, m, opt)  # over what another step left
    for i in range(2 if resume else 0, 4):
        for g in opt.param_groups: g['lr'] = g['base'] * .5**i
        log.append(step(run, params, opt, i)['loss'])
        if save and i == 1: S.save_sharded(save, m, opt)
    return log, m, opt

def stages(how, precision='fp32'):
    "Two stages on one model: what moved in each, and the losses."
    from omni_lite.train.muon import MuonAdamW
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, StateDictOptions
    m, losses, moved = model(dim=64), [], []
    state = lambda: get_model_state_dict(m, options=StateDictOptions(full_state_dict=True)) 
    if how == 'fsdp2': S.shard(m, precision=precision)
    for trains in (dict(bridge=1e-3, head=1e-3), dict(llm=1e-3)):
        groups = freeze(m, Stage('x', 'lm', trains))
        run = S.parallelize(S.Losses(m), how, precision); opt = MuonAdamW(groups)
        was = {k: v.clone() for k, v in state().items()}
        for i in range(2): losses.append(step(run, [p for g in opt.param_groups for p in g['params']], opt, i)['loss'])
        moved.append(sorted({k.split('.')[0] for k, v in state().items() if not torch.equal(v, was[k])}))
    return dict(losses=losses, first=moved[0], second=moved[1])

def recipe_run(how, out, stop=0):
    "Two stages of the recipe on text and pictures; `stop` leaves in the middle of the second."
    from unittest.mock import patch
    from omni_lite.data.world import World
    from omni_lite.omni.processor import OmniProcessor
    from omni_lite.text import train_tokenizer
    from omni_lite.train import trainer as T
    world = World('small'); tok = train_tokenizer(l for l, _ in zip(world.corpus(0), range(300)))
    torch.manual_seed(0); cfg = preset('tiny'); m = OmniForCausalLM(replace(cfg, llm=replace(cfg.llm, vocab_size=len(tok))))
    shop = T.Workshop(m, OmniProcessor(tok, m.cfg), world, None, tokens=256, progress=False, how=how, accumulate=2)
    rows, drawn, one_step = [s for s in T.recipe() if s.name in ('lang', '1.2')], [], T.StageRun.one_step
    def counted(run):
        if stop and run.stage.name == '1.2' and run.step == stop: raise KeyboardInterrupt
        drawn.append(str(run.data.state_dict()['begin']['rng'])[:200])
        return one_step(run)
    out.mkdir(exist_ok=True)
    with patch.object(T.StageRun, 'one_step', counted): results = T.run_recipe(shop, rows, steps=4, out=out, every=0)
    return m, results, drawn

def trainer(how, out):
    "The recipe whole, then stopped and resumed."
    from unittest.mock import patch
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, StateDictOptions
    from omni_lite.train import trainer as T
    whole = lambda m: get_model_state_dict(m, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    def kept(m, results, drawn):
        return dict(weights=whole(m), results=results, drawn=S.gather(drawn[-1]), logs=[f.name for f in (out/'a').glob('*.jsonl')])
    a, stopped, refused = kept(*recipe_run(how, out/'a')), False, ''
    try: recipe_run(how, out/'b', stop=2)
    except KeyboardInterrupt: stopped = True
    b = kept(*(again := recipe_run(how, out/'b')))
    with patch.object(T, 'world_size', lambda: 3):
        try: T.RunFolder(T.Workshop(again[0], None, None, None), out/'b').load()
        except ValueError as e: refused = str(e)
    return a, b, stopped, refused

def main(out):
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, StateDictOptions
    S.start_processes(); keep = lambda x, name: torch.save(x, out/name) if dist.get_rank() == 0 else None
    whole = lambda m: get_model_state_dict(m, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    def save(m, opt):
        S.save_sharded(out/'sharded', m, opt, step=HALF); S.save_whole(m, out/'whole', half=False)
        keep(whole(m), 'fsdp2-half.pt')
    for how in ('ddp', 'fsdp2'):
        log, m = train(how, save=save if how == 'fsdp2' else None)
        box = [None]*2; dist.all_gather_object(box, log)
        keep(dict(log=log, model=whole(m), same=[a == b for a, b in zip(*box)]), f'{how}.pt')
    keep([r['loss'] for r in train('fsdp2', resume=out/'sharded')[0]], 'resumed.pt')
    keep(stages('fsdp2', 'bf16'), 'stages.pt')
    keep([muon('fsdp2', save=out/'muon')[0], muon('fsdp2', resume=out/'muon')[0]], 'muon.pt')
    log, m, opt = muon('ddp'); all_of = S.gather({k: v.clone() for k, v in m.state_dict().items()})
    keep(dict(log=log, weights=all_of, hands=[len(h) for h in opt.hands], moved=S.gather(sum(map(len, (g['params'] for g in opt.parts[0].param_groups))))),
         'dealt.pt')
    log, m = train('fsdp2', 2, tie=True)
    tied = m.llm.lm_head.weight is m.llm.get_input_embeddings().weight
    keep(dict(loss=[r['loss'] for r in log], tied=tied), 'tied.pt')
    for how in ('ddp', 'fsdp2'):
        (out/how).mkdir(exist_ok=True); keep(trainer(how, out/how), f'trainer-{how}.pt')
    dist.destroy_process_group()

if __name__ == '__main__': main(Path(sys.argv[1]))
