"""Our residual quantiser against vector-quantize-pytorch: same codebooks, same codes, one thread; and against the bare matrix
products that any search needs, the floor."""
import importlib.util

from omni_lite.bench import FloorCase, bench, one_thread

__all__ = ['BAICHUAN', 'same_codes', 'natural', 'pair', 'cases']

BAICHUAN = (8192, 4096, 2048) + (1024,)*5  # entries per level of the released tokenizer

def same_codes(
    a:'Tensor', b:'Tensor', # (N, n_q) codes
    x:'Tensor', books:list, # (N, D) vectors; (K, D) entries of each level
) -> bool: # equal, but for ties
    "Equal codes; two entries count as tied where their distances differ by less than fp32 can tell."
    import torch
    x = x.double()
    for l, book in enumerate(books):
        d = lambda c: (x - book[c[:, l]].double()).square().sum(1)
        if ((d(a) - d(b)).abs() > 1e-5 * d(a)).any(): return False
        same = a[:, l] == b[:, l]  # after a tie the residuals differ, and so may what follows
        if same.float().mean() < .99: return False
        a, b, x = a[same], b[same], (x - book[a[:, l]].double())[same]
    return True

def natural(
    n:int, dim:int, # vectors, width
    seed:int=0, # of the vectors
    level:int=0, # 0: with the mean that sound has; further levels: what is left over, smaller and without a mean
) -> 'Tensor': # (n, dim)
    "Vectors whose variance falls along the axes, as that of sound does."
    import torch
    draw = lambda *shape, seed: torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    x = draw(n, dim, seed=seed) * torch.linspace(1.5, .3, dim) * .8**level
    return x if level else x + draw(dim, seed=0)

def pair(
    dim:int, sizes:tuple, # width, entries per level
    search:str='exact', # of ours
) -> tuple: # our quantiser, theirs, with the same codebooks
    "Two quantisers that hold the same entries."
    if importlib.util.find_spec('vector_quantize_pytorch') is None:
        raise ValueError('the rvq bench compares with vector-quantize-pytorch, which is not installed: '
                         'pip install vector-quantize-pytorch')
    from vector_quantize_pytorch import ResidualVQ
    from omni_lite.audio.rvq import RVQ
    ours = RVQ(dim, sizes, dropout=0., kmeans_rounds=0, search=search)
    theirs = ResidualVQ(dim=dim, codebook_size=tuple(sizes), decay=.98, threshold_ema_dead_code=.2, rotation_trick=False)
    for l, (b, layer) in enumerate(zip(ours.books, theirs.layers)):
        e = natural(len(b.embed), dim, l + 1, l)
        for t in (b.embed, b.embed_avg): t.copy_(e)
        for t in (layer._codebook.embed, layer._codebook.embed_avg): t.copy_(e[None])
    return ours, theirs

def _products(x, books):  # the floor: one matrix product a level; x (N, D), books (D, K)
    import torch
    for b in books: torch.mm(x, b)

def _encode_case(name, frames, dim, sizes, search='exact', step=None):
    "All frames at once, or step by step as they come from a microphone."
    import torch
    ours, theirs = pair(dim, sizes, search); ours.eval(); theirs.eval()
    x, books = natural(frames, dim, 99), [b.embed for b in ours.books]
    parts = x.split(step or frames)
    kind = torch.bfloat16 if search == 'bf16' else torch.float32
    low, slim = [p.to(kind) for p in parts], [b.to(kind).T for b in books]
    if step == 1: slim = [b.contiguous() for b in slim]  # the faster layout for one vector
    run = lambda f: one_thread(lambda: [f(p) for p in parts])
    floor = one_thread(lambda: [_products(p, slim) for p in low])
    return FloorCase(name, run(ours.encode), run(lambda p: theirs(p[None])[1][0]),
                     lambda a, b: same_codes(torch.cat(a), torch.cat(b), x, books), floor, 2e-9*frames*dim*sum(sizes))

def _train_case(name, frames, dim, sizes):
    ours, theirs = pair(dim, sizes); ours.train(); theirs.train()
    x, first = natural(frames, dim, 99)[None], [b.embed.clone() for b in ours.books]
    def us():
        z = x.clone().requires_grad_(); q = ours(z)
        (q.z.square().mean() + q.commit).backward()
        return q.codes[0]
    def them():
        z = x.clone().requires_grad_(); q, codes, commit = theirs(z)
        (q.square().mean() + commit.sum()).backward()
        return codes[0]
    return FloorCase(name, one_thread(us, True), one_thread(them, True), lambda a, b: same_codes(a, b, x[0], first),
                     one_thread(lambda: _products(x[0], [b.T for b in first])), 2e-9*frames*dim*sum(sizes))

@bench('rvq', 'codes of 8 levels, and a training step, on one thread', 'vector-quantize-pytorch with the same codebooks')
def cases() -> list: # of FloorCase
    "Quantise 80 s of sound, and 2 s frame by frame, at two lists of sizes; one training step."
    even = (1024,)*8
    return [_encode_case('8 x 1024, width 256, 1000 frames', 1000, 256, even),
            _encode_case('8 x 1024, width 256, 1000 frames, bf16 candidates', 1000, 256, even, 'bf16'),
            _encode_case('8 x 1024, width 256, 25 frames one by one', 25, 256, even, step=1),
            _encode_case("Baichuan's sizes, width 256, 1000 frames", 1000, 256, BAICHUAN),
            _encode_case("Baichuan's sizes, width 256, 1000 frames, bf16 candidates", 1000, 256, BAICHUAN, 'bf16'),
            _train_case('training step: averages, restart, gradient; 8 x 1024, width 256, 1000 frames', 1000, 256, even)]
