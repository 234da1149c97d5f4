"""What a rung weighs, what training it takes, and what a file costs.

Nothing is trained to know this. A training step runs on tensors that have shapes but no numbers: the same code as in training,
while every byte alive and every operation is booked. Each figure is `computed` that way, `stated` by a maker, `assumed` here,
or `measured` on the spot, and says which."""
import math, os, statistics, time, weakref
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils import flop_counter as fc

__all__ = ['DEVICES', 'EFFICIENCY', 'LAUNCH', 'CPU_COST', 'HOLDS', 'Device', 'Books', 'Shadow', 'Setup', 'Bill', 'plan_rows',
           'shadow_of', 'made_batch', 'codec_batch', 'one_step', 'shadow_step', 'sharing', 'cpu_speeds', 'cpu_seconds',
           'measure_step', 'step_seconds', 'plan_stage', 'plan_stages', 'measure_stages', 'plan_command',
           'sound_seconds', 'cost_row', 'cost_of', 'inspect_command']

aten = torch.ops.aten

def plan_rows(
    preset:str='nano', # tiny, nano, lite or 7b
) -> list[dict]: # part, weights in millions, fp16 megabytes
    "Weights of every part, counted on a model without storage."
    from omni_lite.config import preset as get_preset
    from omni_lite.omni.model import OmniForCausalLM, count_parameters
    cfg = get_preset(preset)
    with torch.device('meta'): sizes = count_parameters(OmniForCausalLM(cfg))
    sizes['all'] = sum(sizes.values())
    return [dict(part=k, millions=v/1e6, fp16_mb=v*2/2**20) for k, v in sizes.items()]

# ---- what a device can do

class Device(NamedTuple):
    "Peaks as its maker states them, dense: no sparsity, fp32 without TF32, which PyTorch leaves off."
    memory:float # bytes
    bf16:float; fp32:float # operations a second of matrix products
    link:float # bytes a second to its neighbours, one way

# Sources: data sheets of the makers. NVIDIA: H100 SXM and H200 SXM (NVLink 900 GB/s both ways), A100 SXM 80 GB (600 GB/s both
# ways), Ada whitepaper for the RTX 4090 (bf16 with fp32 sums; PCIe 4.0 x16) and the L4 (half of its figure with sparsity;
# PCIe 4.0 x16). AMD: Instinct MI300X (Infinity Fabric, 128 GB/s both ways to each of seven neighbours).
DEVICES = dict(
    h100=Device(80e9, 989.4e12, 66.9e12, 450e9), h200=Device(141e9, 989.4e12, 66.9e12, 450e9),
    a100=Device(80e9, 312e12, 19.5e12, 300e9), rtx4090=Device(24e9, 165.2e12, 82.6e12, 32e9),
    l4=Device(24e9, 121e12, 30.3e12, 32e9), mi300x=Device(192e9, 1307.4e12, 163.4e12, 448e9))
EFFICIENCY = .4 # assumed share of a stated peak that training reaches
LAUNCH = 1e-5 # assumed seconds for each operation to be given to a GPU: what a small model waits for

def _host(): # this machine
    return Device(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'), math.nan, math.nan, math.nan)

# ---- a step without numbers

SMALL = 2**20 # a tensor of integers or switches with at most so many elements keeps its numbers, since code asks for them

@dataclass
class Books:
    "What has happened so far."
    flops:Counter = field(default_factory=Counter) # of matrix products and attention, by type of number
    moved:float = 0. # bytes that all other operations read and wrote
    ops:int = 0

    def __add__(self, o): return Books(self.flops + o.flops, self.moved + o.moved, self.ops + o.ops)
    def times(self, n:float): return Books(Counter({k: n*v for k, v in self.flops.items()}), n*self.moved, n*self.ops)

def _attention(q, k, v, *a, out_val=None, **kw): return fc.sdpa_flop_count(q.shape, k.shape, v.shape)
def _attention_back(g, q, k, v, *a, out_val=None, **kw): return fc.sdpa_backward_flop_count(g.shape, q.shape, k.shape, v.shape)

FLOPS = {**fc.flop_registry, aten._scaled_dot_product_flash_attention_for_cpu: _attention,
         aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_back}

NO_WORK = ('_unsafe_view', 'detach', 'empty', 'new_empty', 'empty_like', '_local_scalar_dense')

@lru_cache(maxsize=None)
def _is_idle(func): # gives old memory, or new memory as it is, or only asks
    return func.namespace != 'aten' or func._overloadpacket.__name__ in NO_WORK or any(
        r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)

class Shadow(TorchDispatchMode):
    "Runs torch code on tensors without numbers and keeps the books: bytes alive, their peak, operations."
    def __init__(self):
        super().__init__()
        self.fake, self.alive, self.now, self.peak, self.books = FakeTensorMode(allow_non_fake_inputs=True), {}, 0, 0, Books()
        self.grads, self.activations, self.fixed = 0, 0, 0

    def hold(self, *tensors) -> None: # any; None is skipped
        "Book tensors until they die."
        for t in tensors:
            if t is None or id(s := t.untyped_storage()) in self.alive: continue
            k, n = id(s), s.nbytes()
            self.alive[k] = weakref.ref(s, lambda _, k=k, n=n: self._drop(k, n))
            self.now += n
        self.peak = max(self.peak, self.now)
        self.activations = max(self.activations, self.now - self.fixed - self.grads)

    def _drop(self, k, n): del self.alive[k]; self.now -= n

    def restart(self, fixed:int=0) -> None: # bytes alive that are no activations
        "Begin a new count of what happens; what is alive stays booked."
        self.peak, self.books, self.activations, self.fixed = self.now, Books(), 0, fixed

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        have = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        ghosts = any(isinstance(t, FakeTensor) for t in have)
        out = self._ghostly(func, args, kwargs) if ghosts else self._real(func, args, kwargs, have)
        new = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        self.hold(*new)
        if not _is_idle(func): self._book(func, args, kwargs, out, have, new)
        return out

    def _book(self, func, args, kwargs, out, have, new):
        self.books.ops += 1
        if count := FLOPS.get(func._overloadpacket):
            self.books.flops[str(have[0].dtype).removeprefix('torch.')] += count(*args, **kwargs, out_val=out)
        else: self.books.moved += _bytes(new*2 if func._overloadpacket in (aten.embedding, aten.index) else have + new)

    def _real(self, func, args, kwargs, have): # integers and switches; what grows large loses its numbers
        if have and max(t.numel() for t in have) < 1024: return func(*args, **kwargs)
        try:
            with self.fake: out = func(*args, **kwargs)
        except Exception: return func(*args, **kwargs) # its shape depends on numbers
        return out if any(t.numel() > SMALL for t in tree_leaves(out) if isinstance(t, torch.Tensor)) else func(*args, **kwargs)

    def _ghostly(self, func, args, kwargs):
        if func is aten._local_scalar_dense.default: return False if args[0].dtype == torch.bool else 0 # nobody knows
        if func is aten.masked_scatter_backward.default: return args[0].new_empty(args[2])
        if func is aten.index.Tensor: args = (args[0], [j for i in args[1] for j in _places(i)])
        return func(*args, **kwargs)

def _places(i): # an index without switches
    if i is None or i.dtype != torch.bool: return [i]
    if isinstance(i, FakeTensor): i = torch.ones(i.shape, dtype=torch.bool) # nobody knows: all
    return i.nonzero().unbind(1)

def shadow_of(
    module:nn.Module, fake:FakeTensorMode, dtype:torch.dtype|None=None, # on the meta device, changed in place; of weights
    memo:dict|None=None, # for modules that share weights
) -> nn.Module: # the same module, its weights on a device that is only claimed
    "Let a module without storage pass as one on this machine."
    memo = {} if memo is None else memo
    def like(t):
        if id(t) in memo: return memo[id(t)][1]
        f = t.detach().to(dtype) if dtype and t.is_floating_point() else t.detach()
        f = torch.tensor(True) if t.dtype == torch.bool else FakeTensor(fake, f, torch.device('cpu'))
        memo[id(t)] = t, nn.Parameter(f, t.requires_grad) if isinstance(t, nn.Parameter) else f
        return memo[id(t)][1]
    for m in module.modules():
        for d in (m._parameters, m._buffers): d.update({k: like(t) for k, t in d.items() if t is not None and t.is_meta})
    return module

# ---- batches that have the shapes of real ones

# Shares of the positions of a row: seen, heard, made; labels of text, labels of words in progress. Measured over 40 rows of each
# task on the small world; what is left is text and tags. The last four are the sets of the paper's table, by what is nearest.
HOLDS = dict(corpus=(0, 0, 0, .94, 0), text=(0, 0, 0, .24, 0), turns=(0, 0, 0, .19, 0), owners=(0, 0, 0, .09, 0),
    colors=(0, 0, 0, .09, 0), ahead=(0, 0, 0, .05, 0), caption=(.41, 0, 0, .29, .17), picture=(.5, 0, 0, .13, .22),
    clip=(.45, 0, 0, .15, .24), spoken_picture=(.37, .35, 0, .1, .5), spoken_clip=(.33, .3, 0, .12, .43),
    picture_aloud=(.37, 0, .2, .12, .3), spoken_picture_aloud=(.28, .27, .14, .1, .45), clip_aloud=(.3, 0, .28, .12, .41),
    hear=(0, .43, 0, .17, .36), say=(0, 0, .43, .07, .36), spoken=(0, .76, 0, .12, .69), answer_aloud=(0, 0, .31, .18, .26),
    spoken_aloud=(0, .55, .22, .11, .69), sound=(0, .56, 0, .13, 0), sound_aloud=(0, .4, .21, .12, .16),
    itts=(0, 0, .66, .19, .57), intlv=(0, .53, 0, .38, .44), picture_turns=(.21, .19, 0, .21, .28), outside=(.12, 0, 0, .42, .04),
    spoken_outside=(.08, .45, 0, .35, .41), outside_aloud=(.08, 0, .29, .3, .28),
    image=(.41, 0, 0, .29, .17), video=(.45, 0, 0, .15, .24), audio=(0, .43, 0, .17, .36))

def _held(stage): # -> five shares of positions
    from omni_lite.train.stages import NANO
    mix = stage.mixture or next(s.mixture for s in NANO if s.name == stage.name) # unpublished: as nano does it
    if odd := sorted(set(mix) - set(HOLDS)):
        raise ValueError(f'what a row of {odd[0]} holds is not known: add it to HOLDS in omni_lite/plan.py.')
    return [sum(w*HOLDS[k][i] for k, w in mix.items()) for i in range(5)]

def _grid(cfg): # of a typical picture: 448 pixels a side, or as many as the rung takes
    side = int(min(cfg.vision.max_pixels, 448**2)**.5) // cfg.vision.patch
    return 1, side // cfg.vision.merge * cfg.vision.merge, side // cfg.vision.merge * cfg.vision.merge

def _fill(rows, length, empty, start, n): # (B, T) of one value, in n positions from `start` on another
    t = torch.full((rows*length,), empty, dtype=torch.long); t[start:start + n] = 1
    return t.view(rows, length)

def _spread(rows, length, n): # (B, T) labels of which n are asked for, far apart
    t = torch.full((rows*length,), -100, dtype=torch.long); t[1::max(1, rows*length // max(n, 1))][:n] = 1
    return t.view(rows, length)

def made_batch(
    cfg:'NanoConfig', stage:'Stage', rows:int, length:int, # sizes; its mixture says what rows hold; B, T
) -> dict: # as of `collate`, and seq_ids where the stage packs
    "A batch with the shapes of the stage's, its positions filled in order."
    (t, h, w), v, size = _grid(cfg), cfg.vision, (rows, length)
    seen, heard, made, asked, words = (round(s * rows * length) for s in _held(stage))
    each = h*w // v.merge**2; pictures = -(-seen // each); seen = pictures * each
    if seen + heard + made > rows*length:
        raise ValueError(f'{rows} rows of {length} positions cannot hold a picture of {each}: take more.')
    levels = lambda t: t[..., None].repeat(1, 1, len(cfg.audio.codebook_sizes))
    batch = dict(input_ids=_fill(*size, 1, 0, 0), labels=_spread(*size, asked), see=_fill(*size, 0, 0, seen) > 0,
        codes=levels(_fill(*size, -1, seen, heard + made)), code_labels=levels(_fill(*size, -100, seen + heard, made)),
        align=_spread(*size, 0 if cfg.name == '7b' else words), # outside our world nobody knows the word in progress
        patches=torch.zeros(pictures*h*w, 3*v.temporal*v.patch**2) if pictures else None, grids=[(t, h, w)]*pictures, files=[])
    return batch | (dict(seq_ids=torch.zeros(*size, dtype=torch.long)) if stage.context else {})

def codec_batch(
    cfg:'NanoConfig', kind:str, frames:int=480, # sizes; 'tokenizer', 'flow' or 'vocoder'; tokens of 80 ms
) -> dict: # as of `SoundBatches`
    "Sounds with the shapes of the codec's batches."
    T = 10 if kind == 'vocoder' else 40
    B, a, r = max(1, frames // T), cfg.audio, cfg.audio.ratio
    return dict(mel16=torch.zeros(B, 8*T, a.n_mels), mel24=torch.zeros(B, r*T, a.voice_mels), wav=torch.zeros(B, 1920*T),
                phone=torch.zeros(B, r*T, dtype=torch.uint8), f0=torch.full((B, 4*T), 120.), lengths=torch.full((B,), T),
                text=['a sentence']*B)

class _Words: # a text tokenizer for which every sentence has twelve tokens
    def convert_tokens_to_ids(self, name): return 1
    def encode(self, text, **kw): return [1]*12

# ---- one step, with numbers or without

def _objective(m, stage): # what the trainer minimises, with a text tokenizer that has no text
    from omni_lite.train.trainer import Workshop
    return Workshop(m, SimpleNamespace(tok=_Words()), None, None).objective(stage)

def _trained(m, objective, stage): # parameters, those of the objective's own included
    from omni_lite.train.stages import melt
    m.eval(); mine = [p for ps in melt(m, stage).values() for p in ps]; ours = {id(p) for p in m.parameters()}
    for name in stage.trains: getattr(m, name).train()
    objective.training = True
    return mine + [p.requires_grad_(True) for p in objective.parameters() if id(p) not in ours]

def one_step(
    objective:nn.Module, batch:dict, params:list, opt:'Optimizer|None', # forward(batch, progress); trained; None = no update
    autocast:bool=False, # in bf16?
) -> None:
    "What the trainer does with a batch: forward, backward, clip, step."
    for p in params: p.grad = None
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast): loss = objective(batch, .5)['loss']
    loss.backward(); del loss
    torch.nn.utils.clip_grad_norm_(params, 1.)
    if opt: opt.step()

def _bytes(tensors): return sum(t.numel() * t.element_size() for t in tensors)

@dataclass(frozen=True)
class Setup:
    "How a stage is to be trained."
    devices:int = 1; device:str = 'cpu'; parallel:str = 'none'; precision:str = 'fp32' # as `parallelize` takes them
    checkpointing:bool = False # compute blocks again in the backward pass
    rows:int = 0; context:int = 0 # of one batch of one device; 0 = the stage's, or assumed
    accumulate:int = 1 # batches in a step

    def check(self) -> None:
        "Refuse what cannot be."
        from omni_lite.train.scale import HOW
        for name, value, known in (('device', self.device, ('cpu', *DEVICES)), ('parallelism', self.parallel, HOW),
                                   ('precision', self.precision, ('fp32', 'bf16'))):
            if value not in known: raise ValueError(f"no {name} '{value}': choose {', '.join(known)}")
        if min(self.devices, self.rows + 1, self.context + 1, self.accumulate) < 1:
            raise ValueError('devices, rows, context and accumulate are counts: give 1 or more.')
        if self.devices > 1 and self.parallel == 'none':
            raise ValueError(f"{self.devices} devices do nothing together with parallel 'none': choose ddp or fsdp2.")

def _optimise(sh, params, every): # books of one update, bytes of its state, bytes it needs meanwhile; each shape runs once
    from omni_lite.train.muon import MuonAdamW, is_hidden
    total, state, most = Books(), 0, 0
    with sh:
        for shape, n in Counter(tuple(p.shape) for p in params).items():
            with sh.fake: p = nn.Parameter(torch.empty(shape)); p.grad = torch.empty(shape)
            opt = MuonAdamW([dict(params=[p], lr=1.)]); opt.step()
            before, sh.books = sh.now, Books(); sh.peak = before; opt.step()
            total, most = total + sh.books.times(n), max(most, sh.peak - before)
            state += n * _bytes(v for o in opt.parts for s in o.state.values() for v in s.values())
    if every: most = max(most, 4*sum(p.numel() for p in params if not is_hidden(p))) # AdamW on a GPU takes all of them at once
    return total, state, most

@dataclass
class Bill:
    "What a step of a stage takes on one device, in bytes, and its operations."
    stage:str; trained:int; positions:int # weights; positions of one device's batch, tokens of sound for the codec
    weights:float; gradients:float; optimiser:float; activations:float; peak:float # peak of all together
    books:Books; update:Books # of forward and backward of all batches; of the optimiser
    gathered:float = 0.; buckets:float = 0.; sent:float = 0. # held by FSDP2, by DDP; bytes sent in a step

def _sizes(preset, stage, setup): # rows and positions of one device's step
    usual = dict(tiny=(48, 32), nano=(48, 32)).get(preset, (1, 4096)) # nano: what its trainer draws; else assumed
    length = setup.context or stage.context or usual[1]
    rows = setup.rows or (max(1, stage.batch // setup.devices) if stage.batch else usual[0] if length == usual[1] else 1)
    return rows, length

def _batch(cfg, preset, stage, setup): # and its positions
    if stage.kind not in ('lm', 'eye'):
        b = codec_batch(cfg, stage.kind, 120 if stage.kind == 'vocoder' else 480)
        return b, int(b['lengths'].sum())
    rows, length = _sizes(preset, stage, setup)
    return made_batch(cfg, replace(stage, context=setup.context or stage.context), rows, length), rows * length

def _check_codec(cfg, stage):
    if stage.kind in ('tokenizer', 'flow') and cfg.audio.decoder == 'official':
        raise ValueError(f'stage {stage.name} cannot be planned: the mel decoder of the release is not trained here')

def shadow_step(
    preset:str, stage:'Stage', setup:Setup=Setup(), # rung; row of its recipe; how
    cfg:'NanoConfig|None'=None, # sizes, where they differ from the rung's
) -> Bill: # for one process, before weights are shared out, see `sharing`
    "Run one step without numbers."
    from omni_lite.config import preset as get_preset
    from omni_lite.omni.model import OmniForCausalLM
    from omni_lite.train.scale import CODEC, checkpoint_blocks
    cfg, sh = cfg or get_preset(preset), Shadow(); _check_codec(cfg, stage)
    sharded, low = setup.parallel == 'fsdp2' and stage.kind in ('lm', 'eye'), setup.precision == 'bf16'
    with torch.device('meta'): m = OmniForCausalLM(cfg); objective = _objective(m, stage)
    memo = {}
    for name, part in m.named_children():
        shadow_of(part, sh.fake, torch.bfloat16 if sharded and low and name not in CODEC else None, memo)
    shadow_of(objective, sh.fake, memo=memo)
    params, (batch, positions) = _trained(m, objective, stage), _batch(cfg, preset, stage, setup)
    for k, v in batch.items():
        if isinstance(v, torch.Tensor) and v.is_floating_point() and k != 'f0':
            batch[k] = sh.fake.from_tensor(v.bfloat16() if sharded and low else v)
    checkpoint_blocks(m, setup.checkpointing)
    weights, update = [*m.parameters(), *m.buffers(), *objective.parameters()], _optimise(sh, params, setup.device != 'cpu')
    sh.hold(*weights, *(v for v in batch.values() if isinstance(v, torch.Tensor)))
    sh.restart(fixed := sh.now)
    def grown(p): sh.grads += _bytes([p.grad])
    hooks = [p.register_post_accumulate_grad_hook(grown) for p in params]
    with sh: one_step(objective, batch, params, None, low and not sharded)
    for h in hooks: h.remove()
    peak = max(sh.peak + update[1], fixed + sh.grads + update[1] + update[2])
    if setup.accumulate > 1: peak = max(peak, fixed + sh.grads + update[1] + sh.activations) # gradients wait for the next batch
    size, trained = _bytes({id(w): w for w in weights}.values()), sum(p.numel() for p in params)
    return Bill(stage.name, trained, positions, size, sh.grads, update[1], sh.activations, peak,
                sh.books.times(setup.accumulate), update[0])

# ---- several devices

def _piece(params, n, size): return sum(math.ceil(p.shape[0]/n) * math.prod(p.shape[1:]) * size for p in params) # cut along rows

def sharing(
    bill:Bill, cfg:'NanoConfig', stage:'Stage', setup:Setup, # of one process; sizes; what trains; how
) -> Bill: # of one of several
    "What becomes of a bill when weights or gradients are shared: computed, not tried on these devices."
    from omni_lite.omni.model import OmniForCausalLM
    from omni_lite.train.scale import CODEC, shard_units
    from omni_lite.train.stages import melt
    n, whole = setup.devices, stage.kind not in ('lm', 'eye')
    around = 2 * (n - 1) / n # of an all-reduce in a ring, in units of what is summed; half of it for a gather
    if setup.parallel == 'none': return bill
    if setup.parallel == 'ddp' or whole:
        sent = around * bill.gradients * setup.accumulate # ours averages after every batch
        return replace(bill, buckets=bill.gradients, peak=bill.peak + bill.gradients, sent=sent)
    with torch.device('meta'): m = OmniForCausalLM(cfg)
    melt(m, stage)
    once = lambda mods: list({id(p): p for x in mods for p in x.parameters()}.values())
    codec, every, units = once(getattr(m, k) for k in CODEC), once([m]), [once(u) for u in shard_units(m)]
    kept, inner = {id(p) for p in codec}, {id(p) for u in units for p in u}
    cut, wide = [p for p in every if id(p) not in kept], 2 if setup.precision == 'bf16' else 4
    numel = lambda ps: sum(p.numel() for p in ps)
    trains, root = [p for p in cut if p.requires_grad], numel(p for p in cut if id(p) not in inner)
    gathered = wide * (root + 2*max(map(numel, units))) # the next unit is on its way while one computes
    gathered += 4 * max(numel(p for p in u if p.requires_grad) for u in units) # its gradients, before they are scattered
    weights, gradients = _piece(cut, n, 4) + 4*numel(codec), _piece(trains, n, 4)
    optimiser = bill.optimiser * gradients / max(1, 4*numel(trains))
    sent = around/2 * (2*wide*numel(cut) + 4*numel(trains)) * setup.accumulate # gathered twice, gradients scattered
    return replace(bill, weights=weights, gradients=gradients, optimiser=optimiser, gathered=gathered, sent=sent,
                   peak=weights + gradients + optimiser + bill.activations + gathered)

# ---- time

def _median_seconds(f, n=3): # of the processor, so that other programs do not count
    f(); times = []
    for _ in range(n): t = time.process_time(); f(); times.append(time.process_time() - t)
    return statistics.median(times)

def _soft(x): # what stands between matrix products
    for _ in range(4): x = torch.nn.functional.layer_norm(torch.nn.functional.gelu(x) + x, x.shape[-1:])
    return x

def _small(x): # a thousand operations that do nothing else but begin and end
    y = x
    for _ in range(500): y = y + x
    y.sum().backward()

def cpu_speeds() -> dict: # float32, bfloat16: operations a second; moved: bytes a second; calls: tiny operations a second
    "Measure one thread of this machine: two matrix products, what stands between them, and how fast operations follow."
    was, x, w = torch.get_num_threads(), torch.randn(1536, 256), torch.randn(256, 768)
    sq = torch.randn(256, 256).bfloat16()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            full = 10*2*1536*256*768 / _median_seconds(lambda: [x @ w for _ in range(10)])
            half = 20*2*256**3 / _median_seconds(lambda: [sq @ sq for _ in range(20)])
            with (sh := Shadow()), sh.fake: _soft(torch.empty(1536, 256))
            moved = sh.books.moved / _median_seconds(lambda: _soft(x))
        tiny = torch.zeros(8, requires_grad=True)
        return dict(float32=full, bfloat16=half, moved=moved, calls=1000 / _median_seconds(lambda: _small(tiny)))
    finally: torch.set_num_threads(was)

# What a step takes in units of those speeds: products in fp32, in bf16, bytes, calls. Fitted to one step of each of nano's 13
# stages on an AMD EPYC without AVX-512, other jobs beside it: 0.91 to 1.14 of the measured times, but 0.74 for the flow decoder,
# whose activation is slow to differentiate; the factor of bf16 is of an EPYC that multiplies it, from an earlier fit.
CPU_COST = (1.01, .942, .966, 3.9)

def cpu_seconds(
    books:Books, speeds:dict, cost:tuple=CPU_COST, # of a step; of `cpu_speeds`; calibrated on other steps
) -> float: # seconds on one thread
    "Time of a step on this machine: computed from speeds measured on the spot."
    a, b, c, d = cost
    half = books.flops['bfloat16']; products = a*(books.flops.total() - half)/speeds['float32'] + b*half/speeds['bfloat16']
    return products + c*books.moved/speeds['moved'] + d*books.ops/speeds['calls']

# ---- measured beside computed

def _real(preset, stage): # the same step with numbers
    from omni_lite.config import preset as get_preset
    from omni_lite.omni.model import OmniForCausalLM
    from omni_lite.train.muon import MuonAdamW
    torch.manual_seed(0); cfg = get_preset(preset)
    m = OmniForCausalLM(cfg); objective = _objective(m, stage)
    params, batch = _trained(m, objective, stage), _batch(cfg, preset, stage, Setup())[0]
    held = {id(t.untyped_storage()): t.untyped_storage().nbytes() for t in
            [*m.parameters(), *m.buffers(), *objective.parameters(), *(v for v in batch.values() if isinstance(v, torch.Tensor))]}
    opt = MuonAdamW([dict(params=params, lr=1e-5)])
    return (lambda: one_step(objective, batch, params, opt)), sum(held.values())

def _peak(step): # most bytes at once in two steps, beyond what was there; the second one has an optimiser's state
    from torch.profiler import profile, ProfilerActivity
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof: step(); step()
    events = sorted((e.start_ns(), e.nbytes()) for e in prof.profiler.kineto_results.events() if e.name() == '[memory]')
    now = most = 0
    for _, n in events: now += n; most = max(most, now)
    return most

def measure_step(
    preset:str, stage:'Stage', steps:int=5, # rung; row of its recipe; timed ones
) -> dict: # peak in bytes; seconds of the processor, median, quartiles, all; speeds around each step
    "Run real steps on one thread of this machine."
    was = torch.get_num_threads(); torch.set_num_threads(1)
    try:
        step, held = _real(preset, stage); peak, times, speeds = held + _peak(step), [], [cpu_speeds()]
        for _ in range(steps):
            t = time.process_time(); step(); times.append(time.process_time() - t); speeds.append(cpu_speeds())
    finally: torch.set_num_threads(was)
    low, mid, high = statistics.quantiles(times, n=4)
    around = [{k: (a[k] + b[k])/2 for k in a} for a, b in zip(speeds, speeds[1:])]
    return dict(peak=peak, seconds=mid, spread=(low, high), times=times, speeds=around)

# ---- the plan

def step_seconds(
    bill:Bill, setup:Setup, speeds:dict|None=None, # of `sharing`; how; of `cpu_speeds`, for the device 'cpu'
) -> float: # seconds of one step
    "Products over the device's rates; or bytes over its link, or giving out operations, where that takes longer."
    books = bill.books + bill.update
    if setup.device == 'cpu': return cpu_seconds(books, speeds or cpu_speeds())
    d, half = DEVICES[setup.device], books.flops['bfloat16']
    products = (half/d.bf16 + (books.flops.total() - half)/d.fp32) / EFFICIENCY
    return max(products, bill.sent/d.link, books.ops*LAUNCH)

def _steps(stage, positions, tokens): # to the end of a stage; 0 where the recipe gives none or a time
    if tokens or stage.tokens: return math.ceil((tokens or stage.tokens) / positions)
    return stage.steps

def plan_stage(
    preset:str, stage:'Stage', setup:Setup=Setup(), # rung; row of its recipe; how
    tokens:float=0., speeds:dict|None=None, # to train on, instead of the row's; of `cpu_speeds`
) -> dict: # what the table shows; `bill` has the rest
    "One row of the plan; every figure in it is computed."
    from omni_lite.config import preset as get_preset
    setup.check(); cfg = get_preset(preset)
    bill = sharing(shadow_step(preset, stage, setup), cfg, stage, setup)
    room = DEVICES[setup.device].memory if setup.device != 'cpu' else _host().memory
    positions, second = bill.positions * setup.devices * setup.accumulate, step_seconds(bill, setup, speeds)
    steps = _steps(stage, positions, tokens)
    return dict(stage=stage.name, trains=list(stage.trains), trainable=bill.trained, memory=bill.peak, fits=bill.peak < room,
                positions=positions, step=second, tokens=steps*positions, seconds=steps*second, bill=bill)

def _chosen(preset, name): # stages of a preset, all or one
    from omni_lite.train.stages import recipe
    rows = recipe(preset)
    if name is None: return rows
    if found := [s for s in rows if s.name == name]: return found
    raise ValueError(f'{preset} has no stage {name}: choose of {", ".join(s.name for s in rows)}')

def plan_stages(
    preset:str='nano', stage:str|None=None, setup:Setup=Setup(), # rung; one stage's name, None = all; how
    tokens:float=0., # to train on in each stage, instead of the recipe's
) -> list: # of `plan_stage`
    "The plan of a recipe."
    from tqdm.auto import tqdm
    setup.check(); stages = _chosen(preset, stage)
    speeds = cpu_speeds() if setup.device == 'cpu' else None
    return [plan_stage(preset, s, setup, tokens, speeds) for s in tqdm(stages, desc='plan', leave=False, disable=None)]

def _span(seconds): # for people
    for name, size in (('days', 86400), ('h', 3600), ('min', 60)):
        if seconds >= 2*size: return f'{seconds/size:.1f} {name}'
    return f'{seconds:.3g} s'

def _amount(n): # for people
    for name, size in (('T', 1e12), ('B', 1e9), ('M', 1e6), ('k', 1e3)):
        if n >= size: return f'{n/size:.4g} {name}'
    return f'{n:.0f}'

def _line(r, stage): # of the table
    if r['tokens']: end = f'{_amount(r["tokens"]):>9} {_span(r["seconds"]):>10}'
    elif stage.share: end = f'{100*stage.share:7.0f} % of the time'
    else: end = '        ? give --tokens'
    memory = f'{r["memory"]/1e9:9.3f} GB{" " if r["fits"] else "!"}'
    return (f'{r["stage"]:10} {", ".join(r["trains"]):31} {r["trainable"]/1e6:9.2f} M {memory} '
            f'{_amount(r["positions"]):>8} {_span(r["step"]):>9} {end}')

def _table(rows, stages):
    print(f'{"stage":10} {"trains":31} {"trainable":>11} {"a device":>12}  {"a step":>8} {"takes":>9} {"tokens":>9} {"time":>10}')
    for r, s in zip(rows, stages): print(_line(r, s))
    if not all(r['fits'] for r in rows):
        print('! does not fit: take more devices with fsdp2, --checkpointing, --precision bf16, or shorter rows')

def _parts(bill): # where the memory goes
    for name in ('weights', 'gradients', 'optimiser', 'activations', 'gathered', 'buckets', 'peak'):
        if value := getattr(bill, name): print(f'  {name:12} {value/1e9:9.3f} GB')
    books = bill.books + bill.update
    print(f'  {"products":12} {books.flops.total()/1e12:9.3f} TFLOP, of them the optimiser {bill.update.flops.total()/1e12:.3f}')
    if bill.sent: print(f'  {"sent":12} {bill.sent/1e9:9.3f} GB')

def _sources(preset, setup): # where the figures come from
    print('computed: weights, memory and operations, from a step without numbers; what kernels take for themselves is not in it')
    if setup.device == 'cpu': print('time: computed from speeds measured just now on one thread, with a calibration of other steps')
    else:
        d = DEVICES[setup.device]
        print(f'stated: {setup.device}, {d.memory/1e9:.0f} GB, {d.bf16/1e12:.0f} TFLOPS in bf16, {d.fp32/1e12:.0f} in fp32, '
              f'{d.link/1e9:.0f} GB/s to its neighbours')
        print(f'assumed: {100*EFFICIENCY:.0f} % of the stated rate, {1e6*LAUNCH:.0f} us to launch an operation, all while sending')
    if preset in ('nano', 'tiny'): print('assumed: batches of 48 rows of 32 positions, about what its trainer draws')
    else: print('assumed: a row of 4096 positions a device where the recipe gives no length, pictures of at most 448 x 448 pixels')

def measure_stages(
    preset:str='nano', stage:str|None=None, steps:int=5, # tiny or nano; one stage's name, None = all; timed ones
) -> 'Iterator': # dicts: stage, peak and seconds measured and computed, their ratios, quartiles of the measured seconds
    "Real steps beside computed ones; speeds are measured before and after each step, so that a busy machine counts on both sides."
    if preset not in ('tiny', 'nano'): raise ValueError(f'{preset} is too large to measure here: take nano or tiny')
    for s in _chosen(preset, stage):
        bill, real = shadow_step(preset, s), measure_step(preset, s, steps)
        books = bill.books + bill.update; made = statistics.median(cpu_seconds(books, v) for v in real['speeds'])
        ratio = statistics.median(cpu_seconds(books, v)/t for v, t in zip(real['speeds'], real['times']))
        yield real | dict(stage=s.name, computed_peak=bill.peak, peak_ratio=bill.peak/real['peak'], computed_seconds=made,
                          seconds_ratio=ratio, books=books)

def _measure(preset, stage):
    print(f'{"stage":10} {"peak, MB":>10} {"computed":>10} {"ratio":>6}   {"step, s":>8} {"quartiles":>15} {"computed":>9} '
          f'{"ratio":>6}')
    for r in measure_stages(preset, stage):
        print(f'{r["stage"]:10} {r["peak"]/1e6:10.1f} {r["computed_peak"]/1e6:10.1f} {r["peak_ratio"]:6.3f}   {r["seconds"]:8.3f} '
              f'{r["spread"][0]:6.3f} to {r["spread"][1]:5.3f} {r["computed_seconds"]:9.3f} {r["seconds_ratio"]:6.3f}', flush=True)
    print('measured: bytes that the allocator gave out (torch.profiler), seconds of one thread; ratios are computed over measured')

def plan_command(
    preset:str='nano', # tiny, nano, lite or 7b
    devices:int=1, device:str|None=None, # how many; 'cpu' or a key of DEVICES, None: cpu for nano, h100 for more
    parallel:str='none', precision:str='fp32', checkpointing:bool=False, # as for training
    stage:str|None=None, tokens:float=0., # one stage, in detail; to train on in each stage
    rows:int=0, context:int=0, accumulate:int=1, # of one device's batch; positions of a row; batches in a step
    measure:bool=False, # run real steps, too
) -> None:
    "Print parts, weights and memory of a rung, then its stages: trainable weights, memory, tokens, time."
    device = device or ('cpu' if preset in ('tiny', 'nano') else 'h100')
    setup = Setup(devices, device, parallel, precision, checkpointing, rows, context, accumulate)
    setup.check(); stages, parts = _chosen(preset, stage), plan_rows(preset)
    if measure: return _measure(preset, stage)
    if stage is None:
        print(f'{"part":12} {"million weights":>16} {"fp16 MB":>10}')
        for r in parts: print(f'{r["part"]:12} {r["millions"]:16.3f} {r["fp16_mb"]:10.1f}')
    print(f'\n{preset} on {devices} x {device}, {parallel}, {precision}' + (', blocks computed again' if checkpointing else ''))
    _table(made := plan_stages(preset, stage, setup, tokens), stages)
    if stage: _parts(made[0]['bill'])
    _sources(preset, setup)
    if stage and stages[0].source: print(f'source of the row: {stages[0].source}')

# ---- what a file costs

def sound_seconds(
    path:str|Path, # sound, or clip with sound
) -> float|None: # length of its sound track; None without one
    "Length of a sound track by its header, whatever the name of the file says."
    import soundfile as sf
    from omni_lite.vision.video import clip_seconds, open_clip
    try: return sf.info(str(path)).duration
    except (sf.LibsndfileError, RuntimeError): pass
    try:
        with open_clip(path) as f: return clip_seconds(f, f.streams.audio[0]) if f.streams.audio else None
    except ValueError: return None

def _cache_mb(cfg, positions): # fp16 keys and values of so many positions
    llm = cfg.llm
    return round(positions * llm.layers * 2 * llm.kv_heads * (llm.dim // llm.num_heads) * 2 / 2**20, 2)

def _heard(cfg, seconds): # what a sound track costs
    n = -(-int(seconds * 12.5 * 1000) // 1000)
    return dict(seconds=seconds, tokens=n, codes=n*len(cfg.audio.codebook_sizes), positions=n + 2)

def _seen(path, cfg, tokens, frames): # what a picture or a clip costs
    from omni_lite.vision.video import count_tokens, measure_file
    (size, seconds), v = measure_file(path), cfg.vision
    most = v.max_pixels if seconds is None else v.max_frame_pixels
    most = tokens * (v.patch*v.merge)**2 if tokens else most
    bill = count_tokens(*size, seconds, max_frames=frames or v.max_frames, pixels=(min(v.min_pixels, most), most),
                        patch=v.patch, merge=v.merge, temporal=v.temporal)
    return dict(kind='picture' if seconds is None else 'clip', given=size, seconds=seconds, **bill._asdict())

def cost_row(
    path:str|Path, # picture, clip or sound
    cfg, # NanoConfig
    tokens:int|None=None, # budget of a picture or a frame in tokens; None = the rung's
    frames:int|None=None, # budget of a clip in frames; None = the rung's
) -> dict: # kind, tokens, positions, cache_mb and what else is known
    "What one file costs on a rung, by its header: the kind is asked of the bytes, not of the name."
    if any(n is not None and n < 1 for n in (tokens, frames)):
        raise ValueError(f'a budget of {tokens} tokens and {frames} frames: give one or more of each.')
    heard = sound_seconds(path)
    try: row = _seen(path, cfg, tokens, frames)
    except ValueError:
        if heard is None: raise
        row = dict(kind='sound', **_heard(cfg, heard))
    if row['kind'] == 'clip' and heard: row['sound'] = _heard(cfg, heard)
    return row | dict(cache_mb=_cache_mb(cfg, row['positions']))

def cost_of(
    path:Path, # picture, clip or sound
    cfg, # NanoConfig
    tokens:int|None=None, # budget of a picture or a frame in tokens; None = the rung's
    frames:int|None=None, # budget of a clip in frames; None = the rung's
) -> str: # one line
    "Tokens and memory of one file on a rung, for people."
    r, name = cost_row(path, cfg, tokens, frames), Path(path).name
    cache = f'{r["positions"]} positions, {r["cache_mb"]} MB of cache'
    if r['kind'] == 'sound':
        return f'{name}: sound, {r["seconds"]:.2f} s, {r["tokens"]} tokens of 80 ms, {r["codes"]} codes, {cache}'
    kind = 'picture' if r['kind'] == 'picture' else f'clip, {r["seconds"]:.1f} s, {r["num_frames"]} frames'
    line = (f'{name}: {kind}, {r["given"][1]} x {r["given"][0]} seen at {r["size"][1]} x {r["size"][0]}, '
            f'{r["patches"]} patches of {r["megabytes"]} MB, {r["tokens"]} tokens, {cache}')
    return line + (f'; its sound {r["sound"]["tokens"]} tokens more if heard' if 'sound' in r else '')

def inspect_command(
    files:list, # of Path
    model:Path|None=None, # checkpoint folder; None = the sizes of `preset`
    preset:str='nano', # tiny, nano, lite or 7b
    tokens:int|None=None, # budget of a picture or a frame in tokens; None = the rung's
    frames:int|None=None, # budget of a clip in frames; None = the rung's
) -> None:
    "Print what each file costs."
    import json
    from omni_lite.config import NanoConfig, preset as get_preset
    cfg = get_preset(preset)
    if model:
        d = json.loads((Path(model)/'config.json').read_text()); d.pop('model_type', None)
        cfg = NanoConfig.from_dict(d)
    for f in files: print(cost_of(Path(f), cfg, tokens, frames))
