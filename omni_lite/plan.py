"""What a rung weighs and what a file costs: arithmetic for the command line, nothing is trained or run here."""
from pathlib import Path

__all__ = ['plan_rows', 'plan_command', 'sound_seconds', 'cost_row', 'cost_of', 'inspect_command']

def plan_rows(
    preset:str='nano', # tiny, nano, lite or 7b
) -> list[dict]: # part, weights in millions, fp16 megabytes
    "Weights of every part, counted on a model without storage."
    import torch
    from omni_lite.config import preset as get_preset
    from omni_lite.omni.model import OmniForCausalLM, count_parameters
    cfg = get_preset(preset)
    with torch.device('meta'): sizes = count_parameters(OmniForCausalLM(cfg))
    sizes['all'] = sum(sizes.values())
    return [dict(part=k, millions=v/1e6, fp16_mb=v*2/2**20) for k, v in sizes.items()]

def plan_command(
    preset:str='nano', # tiny, nano, lite or 7b
) -> None:
    "Print parts, weights and memory of a rung, and its stages where it has a recipe."
    rows = plan_rows(preset)
    print(f'{"part":12} {"million weights":>16} {"fp16 MB":>10}')
    for r in rows: print(f'{r["part"]:12} {r["millions"]:16.3f} {r["fp16_mb"]:10.1f}')
    train = rows[-1]['millions'] * 16 / 1000
    print(f'training everything in fp32 with its optimiser takes about {train:.2f} GB before activations')
    from omni_lite.train.stages import recipe
    try: stages = recipe(preset)
    except ValueError as e:
        print(e)
        return
    for s in stages: print(f'{s.name:10} {100*s.share:4.0f} % of the budget  trains {", ".join(s.trains):40} {s.about}')

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
