"""Timings of our parts against an anchor that does the same work another way.

A row is measured in pairs, ours and the anchor in turn, so that a busy machine slows both alike; the ratio is the median
over pairs and the spread its quartiles. A bench first checks that both sides give the same answer."""
import importlib, importlib.metadata, os, pkgutil, platform, statistics, time
from dataclasses import dataclass
from typing import Callable

from omni_lite import __version__

__all__ = ['Case', 'FloorCase', 'Bench', 'BENCHES', 'bench', 'benches', 'one_thread', 'paired', 'run', 'table', 'machine']

@dataclass(frozen=True)
class Case:
    "One row: two callables that do the same work, and a check that they agree."
    name: str
    ours: Callable                       # () -> anything
    anchor: Callable                     # () -> the same thing, another way
    agree: Callable = lambda a, b: True  # (ours, anchor) -> bool

    def extra(self,
        row:dict, # of this case: ours and anchor in ms
    ) -> dict: # more columns
        "What else this case measures, beside the ratio."
        return {}

@dataclass(frozen=True)
class FloorCase(Case):
    "A case that also knows the least work: the matrix products alone."
    floor: Callable = None  # () -> anything
    gflop: float = 0.       # billions of operations in it

    def extra(self,
        row:dict, # of this case: ours in ms
    ) -> dict: # floor in ms, its rate in GFLOP/s, above_floor: ours over floor, median of pairs
        "Time the products beside ours."
        r = paired(self.floor, self.ours, row['pairs'])
        return dict(floor=r['ours'], floor_gflops=round(self.gflop / r['ours'] * 1e3, 1), above_floor=r['ratio'])

@dataclass(frozen=True)
class Bench:
    "A named list of cases."
    name: str
    what: str
    anchor: str        # what ours is compared with
    cases: Callable    # () -> list of Case; imports what it needs

BENCHES = {}

def bench(
    name:str, # how it is asked for
    what:str, # what is timed
    anchor:str, # what it is compared with
) -> Callable: # decorator of a function () -> list of Case
    "Register a function that makes the cases of a bench."
    def _register(f):
        if name in BENCHES: raise ValueError(f'a bench named {name!r} is registered already: choose another name.')
        BENCHES[name] = Bench(name, what, anchor, f)
        return f
    return _register

def benches() -> dict: # name -> Bench
    "All benches: every module of omni_lite.benches registers its own."
    import omni_lite.benches as home
    for m in pkgutil.iter_modules(home.__path__): importlib.import_module(f'{home.__name__}.{m.name}')
    return BENCHES

def one_thread(
    f:Callable, # () -> anything
    grad:bool=False, # does it need gradients?
) -> Callable: # the same on one thread
    "Run with one thread, so that a ratio holds per core."
    import torch
    def _run():
        n = torch.get_num_threads(); torch.set_num_threads(1)
        try:
            with torch.set_grad_enabled(True) if grad else torch.inference_mode(): return f()
        finally: torch.set_num_threads(n)
    return _run

def _seconds(f):
    t = time.perf_counter(); f()
    return time.perf_counter() - t

def paired(
    ours:Callable, # () -> anything
    anchor:Callable, # () -> anything
    pairs:int=15, # how many pairs are timed
) -> dict: # ours and anchor in ms (medians), ratio anchor / ours, its spread (quartiles)
    "Time two callables in turn, swapping who goes first; a ratio over 1 means that ours is faster."
    rows = []
    for i in range(pairs):
        if i % 2: b = _seconds(anchor); a = _seconds(ours)
        else: a = _seconds(ours); b = _seconds(anchor)
        rows.append((a, b))
    ratios = [b/a for a, b in rows]
    low, mid, high = statistics.quantiles(ratios, n=4)
    ms = lambda i: round(1e3*statistics.median(r[i] for r in rows), 4)
    return dict(ours=ms(0), anchor=ms(1), unit='ms', ratio=round(mid, 3), spread=[round(low, 3), round(high, 3)], pairs=pairs)

def _cpu():
    try:
        with open('/proc/cpuinfo') as f: return next(l.split(':', 1)[1].strip() for l in f if l.startswith('model name'))
    except (OSError, StopIteration): return platform.processor() or platform.machine()

def machine() -> dict: # what a reader must know to compare timings
    "The machine and the versions that a timing was taken on."
    names, versions = ('torch', 'torchaudio', 'transformers', 'numpy'), dict(omni_lite=__version__, python=platform.python_version())
    for n in names:
        try: versions[n] = importlib.metadata.version(n)
        except importlib.metadata.PackageNotFoundError: pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    return dict(system=platform.platform(terse=True), cpu=_cpu(), cores=cores, threads=os.environ.get('OMP_NUM_THREADS', 'default'),
                versions=versions)

def run(
    name:str, # a key of BENCHES
    pairs:int=15, # timed pairs in a row
) -> dict: # name, what, anchor, machine, rows (case, ours, anchor, unit, ratio, spread, pairs)
    "Run one bench: check that both sides agree, warm up, then time them in pairs."
    if name not in benches(): raise ValueError(f'there is no bench {name!r}: choose one of {", ".join(BENCHES)}.')
    if pairs < 3: raise ValueError(f'{pairs} pairs give no spread: use 3 or more.')
    b, rows = BENCHES[name], []
    for case in b.cases():
        if not case.agree(case.ours(), case.anchor()):
            raise ValueError(f'{name}, {case.name}: ours and the anchor disagree, so their times cannot be compared.')
        rows.append(row := dict(case=case.name, **paired(case.ours, case.anchor, pairs)))
        row |= case.extra(row)
    return dict(name=name, what=b.what, anchor=b.anchor, machine=machine(), rows=rows)

def table(
    result:dict, # what `run` returned
) -> str: # a Markdown table
    "A result for people."
    usual = ('case', 'ours', 'anchor', 'unit', 'ratio', 'spread', 'pairs')
    more = list(dict.fromkeys(k for r in result['rows'] for k in r if k not in usual))
    line = lambda cells: f"| {' | '.join(cells)} |"
    out = [f'{result["name"]}: {result["what"]}; anchor: {result["anchor"]}', '',
           line(['case', 'ours', 'anchor', 'anchor / ours', 'quartiles', *more]), '|' + '---|'*(5 + len(more))]
    for r in result['rows']:
        out.append(line([r['case'], f'{r["ours"]:.3g} {r["unit"]}', f'{r["anchor"]:.3g} {r["unit"]}', f'{r["ratio"]:.2f}',
                         f'{r["spread"][0]:.2f} to {r["spread"][1]:.2f}', *(str(r.get(k, '')) for k in more)]))
    return '\n'.join(out) + '\n'
