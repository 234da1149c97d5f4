"""What a rung weighs and what a file costs: arithmetic for the command line, nothing is trained or run here."""
from pathlib import Path

__all__ = ['plan_rows', 'plan_command', 'cost_of', 'inspect_command']

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

def cost_of(
    path:Path, # picture, clip or sound
    cfg, # NanoConfig
) -> str: # one line
    "Tokens and memory of one file on a rung."
    from omni_lite.vision.video import inspect_file
    v = cfg.vision
    sounds = ('.wav', '.flac', '.ogg', '.mp3', '.m4a', '.opus')
    if path.suffix.lower() in sounds:
        from omni_lite.omni.processor import read_sound
        seconds = len(read_sound(path)) / 16000
        n = -(-int(seconds * 12.5 * 1000) // 1000)
        return f'{path.name}: sound, {seconds:.2f} s, {n} tokens of 80 ms, {n*len(cfg.audio.codebook_sizes)} codes'
    still = inspect_file(path, patch=v.patch, merge=v.merge, temporal=v.temporal, max_frames=v.max_frames)
    top = v.max_pixels if still.num_frames == 1 else v.max_frame_pixels
    b = inspect_file(path, patch=v.patch, merge=v.merge, temporal=v.temporal, max_frames=v.max_frames, pixels=(v.min_pixels, top))
    kind = 'picture' if b.num_frames == 1 else f'clip, {b.num_frames} frames'
    return f'{path.name}: {kind}, seen at {b.size[1]} x {b.size[0]}, {b.patches} patches, {b.tokens} tokens, {b.megabytes} MB'

def inspect_command(
    files:list, # of Path
    model:Path|None=None, # checkpoint folder; None = the nano preset's sizes
) -> None:
    "Print what each file costs."
    import json
    from omni_lite.config import NanoConfig, preset
    cfg = preset('nano')
    if model:
        d = json.loads((Path(model)/'config.json').read_text()); d.pop('model_type', None)
        cfg = NanoConfig.from_dict(d)
    for f in files: print(cost_of(Path(f), cfg))
