"""The loader: batches by length and packed rows against rows padded in arrival order. All draw the same rows of the same tasks; the
columns say how many positions are no padding, and how long a step of training on nano waits for its data."""
import time
from dataclasses import dataclass

from omni_lite.bench import Case, bench, one_thread

__all__ = ['MIXES', 'parts', 'seen', 'naive', 'waiting']

MIXES = {'text': dict(corpus=.2, text=.4, turns=.4), 'pictures': dict(picture=.6, caption=.2, clip=.2),
         'stage 1.2': dict(picture=.35, caption=.05, clip=.2, text=.15, turns=.15, corpus=.1)}
TOKENS, POOL, LENGTH = 1536, 4, 512  # positions of a batch; batches in a pool; positions of a packed row

def parts() -> tuple: # world, processor, tasks (name -> function(rng) -> Row)
    "Nano's processor and the tasks that need no speech, on the small world."
    from omni_lite.config import preset, replace
    from omni_lite.data.tasks import Material, bind
    from omni_lite.data.world import World
    from omni_lite.omni.processor import OmniProcessor
    from omni_lite.text import train_tokenizer
    world, cfg = World('small'), preset('nano')
    tok = train_tokenizer(l for l, _ in zip(world.corpus(0), range(1500)))
    proc = OmniProcessor(tok, replace(cfg, llm=replace(cfg.llm, vocab_size=len(tok))))
    return world, proc, bind(Material(world, proc))

def naive(
    mix:'Mixture', rows:int=48, # where rows come from; rows of a batch
) -> 'Iterator': # of `collate`, until a pool is drawn
    "Rows in arrival order, padded to the longest of their batch."
    from omni_lite.data.mixture import collate
    while sum(mix.count.values()) < TOKENS*POOL:
        take = []
        while len(take) < rows and sum(mix.count.values()) < TOKENS*POOL: take.append(mix.draw())
        yield collate(take)

def one_pool(
    data:'Batches', # or Packed
) -> 'Iterator': # of batches
    "The batches of one pool."
    yield next(data)
    while data.groups: yield next(data)

def seen(
    batches:'Iterator', mix:'Mixture', # what a loader gives; where its rows come from
) -> dict: # rows and tokens given out, share of positions that are no padding, task -> tokens drawn
    "Take all batches and count."
    rows = tokens = positions = 0
    for b in batches:
        B, T = b['input_ids'].shape; positions += B*T
        if 'seq_ids' in b: rows += int((b['seq_ids'].amax(1) + 1).sum()); tokens += int((b['seq_ids'] >= 0).sum())
        else: rows += B
    tokens = tokens or sum(mix.count.values())
    return dict(rows=rows, tokens=tokens, fill=round(tokens/positions, 3), count=dict(mix.count))

class Clock:
    "A loader and the seconds spent waiting for it."
    def __init__(self, data): self.data, self.seconds = data, 0.
    def __next__(self):
        t = time.perf_counter(); batch = next(self.data); self.seconds += time.perf_counter() - t
        return batch

def waiting(
    world:'World', proc:'OmniProcessor', weights:dict, # of `parts`; task -> share
    ahead:bool=False, steps:int=10, # draw in a thread?; steps to time, the first of which draws a pool
) -> tuple: # share of the time of a step, seconds of a step
    "How long nano's training waits for its data, on all threads."
    import torch
    from omni_lite.data.mixture import Ahead
    from omni_lite.omni.model import OmniForCausalLM
    from omni_lite.train.stages import Stage
    from omni_lite.train.trainer import StageRun, Workshop
    torch.manual_seed(0)
    shop = Workshop(OmniForCausalLM(proc.cfg), proc, world, None, progress=False, tokens=TOKENS)
    run = StageRun(shop, Stage('bench', 'lm', dict(llm=1e-3, bridge=1e-3, eye=5e-4), weights), steps=1000)
    run.one_step()  # warm
    if isinstance(run.data, Ahead): run.data = run.data.data
    run.data.groups = []  # the next step draws a pool
    if ahead: run.data = Ahead(run.data); next(run.data)
    run.data = clock = Clock(run.data)
    t = time.perf_counter()
    for _ in range(steps): run.one_step()
    spent = time.perf_counter() - t
    return round(clock.seconds/spent, 3), round(spent/steps, 3)

@dataclass(frozen=True)
class LoaderCase(Case):
    "Says how full the batches are and, for batches by length, how long a step waits."
    look:tuple = () # (what ours gave, what the anchor gave), filled by the first call
    wait:'Callable|None' = None # () -> more columns

    def extra(self, row):
        a, b = self.look
        rate = lambda k: round(1e3*a[k]/row['ours'])
        more = dict(rows_per_s=rate('rows'), tokens_per_s=rate('tokens'), fill=a['fill'], anchor_fill=b['fill'])
        return more | (self.wait() if self.wait else {})

def _case(name, tasks, weights, make, wait=None):
    from omni_lite.data.mixture import Mixture
    look = [None, None]
    def ours():
        data = make(Mixture(tasks, weights)); look[0] = seen(one_pool(data), data.mix)
        return look[0]
    def anchor(): mix = Mixture(tasks, weights); look[1] = seen(naive(mix), mix); return look[1]
    return LoaderCase(name, one_thread(ours), one_thread(anchor), lambda a, b: a['count'] == b['count'], look, wait)

@bench('data', 'batches of rows, drawn and put together', 'the same rows padded in arrival order')
def cases() -> list: # of Case
    "A pool of text, of pictures and of the mixture of stage 1.2."
    from omni_lite.data.mixture import Batches, Packed
    (world, proc, tasks), out = parts(), []
    for name, weights in MIXES.items():
        def wait(w=weights):
            (a, s), (b, t) = waiting(world, proc, w), waiting(world, proc, w, True)
            return dict(wait=a, step_s=s, wait_ahead=b, step_ahead_s=t)
        out += [_case(f'{name}, by length', tasks, weights, lambda m: Batches(m, TOKENS, POOL), wait),
                _case(f'{name}, packed', tasks, weights, lambda m: Packed(m, LENGTH, TOKENS//LENGTH, POOL))]
    return out
