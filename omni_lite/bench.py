"""Timings of our parts against an anchor that does the same work another way.

A row is measured in pairs, ours and the anchor in turn, so that a busy machine slows both alike; the ratio is the median
over pairs and the spread its quartiles. A bench first checks that both sides give the same answer."""
import importlib.metadata, os, platform, statistics, time
from dataclasses import dataclass
from typing import Callable

from omni_lite import __version__

__all__ = ['Case', 'Bench', 'BENCHES', 'bench', 'paired', 'run', 'table', 'machine']

@dataclass(frozen=True)
class Case:
    "One row: two callables that do the same work, and a check that they agree."
    name: str
    ours: Callable                       # () -> anything
    anchor: Callable                     # () -> the same thing, another way
    agree: Callable = lambda a, b: True  # (ours, anchor) -> bool

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
    if name not in BENCHES: raise ValueError(f'there is no bench {name!r}: choose one of {", ".join(BENCHES)}.')
    if pairs < 3: raise ValueError(f'{pairs} pairs give no spread: use 3 or more.')
    b, rows = BENCHES[name], []
    for case in b.cases():
        if not case.agree(case.ours(), case.anchor()):
            raise ValueError(f'{name}, {case.name}: ours and the anchor disagree, so their times cannot be compared.')
        rows.append(dict(case=case.name, **paired(case.ours, case.anchor, pairs)))
    return dict(name=name, what=b.what, anchor=b.anchor, machine=machine(), rows=rows)

def table(
    result:dict, # what `run` returned
) -> str: # a Markdown table
    "A result for people."
    out = [f'{result["name"]}: {result["what"]}; anchor: {result["anchor"]}', '',
           '| case | ours | anchor | anchor / ours | quartiles |', '|---|---|---|---|---|']
    for r in result['rows']:
        out.append(f'| {r["case"]} | {r["ours"]:.3g} {r["unit"]} | {r["anchor"]:.3g} {r["unit"]} | {r["ratio"]:.2f} '
                   f'| {r["spread"][0]:.2f} to {r["spread"][1]:.2f} |')
    return '\n'.join(out) + '\n'

# ---- the benches

def naive_codes(
    x, # (N, D) vectors
    books, # (n_q, K, D) codebooks
): # (N, n_q) indices of the nearest entries, level after level
    "Residual quantisation as its definition reads: the distance to every entry, then what is left."
    import torch
    codes = []
    for book in books:
        at = torch.cdist(x, book).argmin(-1)
        x = x - book[at]
        codes.append(at)
    return torch.stack(codes, -1)

@bench('rvq', 'codes of 8 levels for 1, 10 and 100 seconds of sound', 'a loop over levels with torch.cdist')
def _rvq():
    import torch
    from omni_lite.audio import rvq
    torch.manual_seed(0)
    return [_rvq_case(rvq, seconds) for seconds in (1, 10, 100)]

def _rvq_case(rvq, seconds):
    import torch
    frames, dim, sizes = round(12.5*seconds), 768, (512,) + (256,)*7  # widths and entries of the nano preset
    quantiser = rvq.RVQ(dim, sizes).eval()
    books = [b.embed for b in quantiser.books]
    x = torch.randn(frames, dim)  # (N, D)
    return Case(f'{frames} frames x {dim}', lambda: quantiser.encode(x), lambda: naive_codes(x, books),
                lambda a, b: (a == b).float().mean().item() > .99)  # near ties may fall either way in fp32
