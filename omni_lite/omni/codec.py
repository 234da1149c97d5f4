"""The codec of a checkpoint, and files of codes: sound to 12.5 frames of small integers a second and back, of any length.

A file is written under another name and renamed when it is complete: an interrupted run leaves nothing half-written."""
import hashlib, json, math, os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn, Tensor

from omni_lite.audio.mel import EAR_RATE, TOKEN_SECONDS, VOICE_RATE, sound_pieces
from omni_lite.config import NanoConfig
from omni_lite.layers import misfit
from omni_lite.omni.voice import Voice
from omni_lite.omni.model import FILES, TRAIN_ONLY, OmniForCausalLM

__all__ = ['read_config', 'read_weights', 'load_codec', 'whole', 'ready', 'books_hash',
           'encode_file', 'read_codes', 'decode_file']

FORMAT = 'omni_lite codes 1'
BLOCK = 30  # s of sound that are read and encoded at a time
PIECE = 25  # frames (2 s) that are decoded at a time

# ---- the codec of a checkpoint

def read_config(
    folder:Path, # of a checkpoint
) -> NanoConfig:
    "The sizes of a checkpoint."
    file = Path(folder)/'config.json'
    if not file.is_file(): raise FileNotFoundError(f'no config.json in {folder}: name the folder of a checkpoint.')
    try:
        d = json.loads(file.read_text())
        d.pop('model_type', None)
        return NanoConfig.from_dict(d)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f'{file} is not a config of this version: take another checkpoint, or train it again.') from None

def read_weights(
    file:Path, # safetensors
) -> dict: # name -> tensor
    "The tensors of a file."
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    if not Path(file).is_file(): raise FileNotFoundError(f'{file} does not exist: name the folder of a checkpoint.')
    try: return load_file(file)
    except SafetensorError: raise ValueError(f'{file} is broken or cut short: copy it again.') from None

def load_codec(
    folder:str|Path, # a checkpoint; only its config and its codec.safetensors are read
) -> OmniForCausalLM: # in eval mode; its language model is missing; `Voice` and the tokenizer work
    "The codec of a checkpoint."
    m = OmniForCausalLM(read_config(folder := Path(folder)), llm=nn.Identity())
    file, parts = folder/'codec.safetensors', FILES['codec.safetensors']
    want = {k: v for k, v in m.state_dict().items() if k.startswith(parts) and not k.endswith(TRAIN_ONLY)}
    if wrong := misfit(want, have := read_weights(file)):
        raise ValueError(f'{file} {wrong}: it is of another version; train it again, or name another checkpoint.')
    m.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in have.items()}, strict=False)
    for b in m.tokenizer.rvq.books:
        b.cluster_size.fill_(1.); b.embed_avg.copy_(b.embed); b.started.fill_(True)
    return m.eval()

# ---- files of codes

@contextmanager
def whole(
    path:Path, # the file that is wanted
) -> Iterator[Path]: # where to write it meanwhile
    "A file that appears under its name only when it is complete."
    path = Path(path)
    part = path.with_name(f'.{path.name}.{os.getpid()}.part')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()  # a folder that cannot be written to says so before any work
        yield part
        os.replace(part, path)
    except OSError as e:
        raise ValueError(f'{path} cannot be written ({e.strerror or e}): name another file.') from None
    finally:
        if part.is_file(): part.unlink()

def ready(
    out:str|Path, # folder that is to be written to
) -> Path: # the same, made when absent
    "A folder that can be written to, or a sentence."
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (probe := out/'.part').touch()
        probe.unlink()
    except OSError as e: raise ValueError(f'{out} cannot be written to ({e.strerror}): name another folder.') from None
    return out

def books_hash(
    model:OmniForCausalLM, # with a tokenizer
) -> str: # 16 hex digits
    "A name for the codebooks: codes mean the same as long as it is the same."
    h = hashlib.sha256()
    for b in model.tokenizer.rvq.books: h.update(b.embed.detach().float().cpu().numpy().tobytes())
    return h.hexdigest()[:16]

def _levels(wanted, have):
    if wanted is None: return have
    if not 1 <= wanted <= have: raise ValueError(f'{wanted} levels are not possible: these codes have 1 to {have}.')
    return wanted

def encode_file(
    model:OmniForCausalLM, # see `load_codec`
    path:Path, # a sound file of any length, rate and number of channels, or a film
    out:Path, # file of codes: safetensors with `codes` (T, levels) int16
    levels:int|None=None, # keep only the first so many; None: all
    note:str='', # any text that is to lie in the file
) -> dict: # frames, levels, seconds, bytes, bps
    "Write the codes of a recording."
    from safetensors.torch import save_file
    rvq, parts, n = model.tokenizer.rvq, [], 0
    levels = _levels(levels, rvq.n_q)
    about = dict(format=FORMAT, books=books_hash(model), sample_rate=str(EAR_RATE), note=note, sizes=' '.join(map(str, rvq.sizes)),
                 frames_per_second=str(1/TOKEN_SECONDS))
    with whole(out) as part:
        for x in sound_pieces(path, EAR_RATE, BLOCK):
            parts.append(model.tokenizer.encode(x.to(model.device))[:, :levels].to('cpu', torch.int16))
            n += len(x)
        if not n: raise ValueError(f'{Path(path).name} holds no sound: record it again.')
        codes = torch.cat(parts).contiguous()
        save_file(dict(codes=codes), part, about | dict(samples=str(n)))
    bits = sum(map(math.log2, rvq.sizes[:levels]))
    return dict(frames=len(codes), levels=levels, seconds=n/EAR_RATE, bytes=Path(out).stat().st_size, bps=bits/TOKEN_SECONDS)

def read_codes(
    path:Path, # what `encode_file` wrote
    model:OmniForCausalLM|None=None, # that is to decode them; None: do not compare
) -> tuple[Tensor, dict]: # codes (T, levels) int64, texts of the file: books, samples, sizes, note and others
    "Codes of a file, checked against the codec that is to decode them."
    from safetensors import SafetensorError, safe_open
    cure = 'write it again with `omni-lite codec encode`'
    if not Path(path).is_file(): raise FileNotFoundError(f'{path} does not exist.')
    try:
        with safe_open(str(path), 'pt') as f: codes, about = f.get_tensor('codes'), f.metadata() or {}
    except SafetensorError: raise ValueError(f'{path} is no file of codes, or it is cut short: {cure}.') from None
    if about.get('format') != FORMAT: raise ValueError(f'{path} is a safetensors file but not one of codes: {cure}.')
    if codes.dtype != torch.int16 or codes.ndim != 2 or not len(codes):
        raise ValueError(f'{path} holds {codes.dtype} of shape {tuple(codes.shape)} where int16 (frames, levels) is due: {cure}.')
    if not about.get('samples', '').isdigit(): raise ValueError(f'{path} does not say how long its sound is: {cure}.')
    if model is not None: _check_codes(path, codes, about, model, cure)
    return codes.long(), about

def _check_codes(path, codes, about, model, cure):
    sizes, books, which = model.tokenizer.rvq.sizes, books_hash(model), 'name the checkpoint that wrote it with --model'
    if not 1 <= codes.shape[1] <= len(sizes):
        raise ValueError(f'{path} has codes of {codes.shape[1]} levels, this codec {len(sizes)}: {which}.')
    if about.get('books') != books:
        raise ValueError(f'{path} was written with the codebooks {about.get("books", "of an unknown model")}, this codec has '
                         f'{books}: {which}.')
    for l, k in enumerate(sizes[:codes.shape[1]]):
        if codes[:, l].min() < 0 or codes[:, l].max() >= k:
            raise ValueError(f'{path} has a code outside 0 to {k - 1} in level {l + 1}: it was changed; {cure}.')

def decode_file(
    model:OmniForCausalLM, # see `load_codec`
    path:Path, # file of codes
    out:Path, # WAV, 24 kHz, 16 bit
    levels:int|None=None, # use only the first so many; None: all in the file
    flow:bool=True, # False: the mel decoder's own mel goes to the vocoder
    seed:int=0, # of the flow's noise
) -> dict: # frames, levels, seconds
    "Write the sound of a file of codes."
    import soundfile as sf
    codes, about = read_codes(path, model)
    codes = codes[:, :_levels(levels, codes.shape[1])].to(model.device)
    total = left = round(int(about['samples']) * VOICE_RATE/EAR_RATE)
    voice, pieces = Voice(model, seed, flow), codes.split(PIECE)
    with whole(out) as part, sf.SoundFile(str(part), 'w', VOICE_RATE, 1, 'PCM_16', format='WAV') as f:
        for i, piece in enumerate(pieces):
            wav = voice.push(piece, i == len(pieces) - 1)[:left]
            f.write(wav)
            left -= len(wav)
    return dict(frames=len(codes), levels=codes.shape[1], seconds=(total - left)/VOICE_RATE)
