"""Our codec at nano's sizes against transformers' Mimi at its published sizes, both with random weights: the same seconds of
sound in, codes at 12.5 frames a second with eight levels, sound out. Mimi is the larger model (and the better codec when both
are trained), so the ratio says what the small one costs, not that it is better made."""
from dataclasses import dataclass

from omni_lite.bench import Case, bench, one_thread

__all__ = ['SoundCase', 'nano_codec', 'mimi', 'same_length']

@dataclass(frozen=True)
class SoundCase(Case):
    "A case whose work makes so many seconds of sound."
    seconds: float = 1.

    def extra(self,
        row:dict, # of this case: ours and anchor in ms
    ) -> dict: # rtf, anchor_rtf: seconds of work per second of sound
        "Real-time factors."
        return dict(rtf=round(row['ours'] / 1e3 / self.seconds, 3), anchor_rtf=round(row['anchor'] / 1e3 / self.seconds, 3))

def nano_codec(
    steps:int=10, # Euler steps of the flow decoder, with guidance
) -> tuple: # encode: (L,) at 16 kHz -> (T, 8) codes; decode: codes -> (L,) at 24 kHz
    "Both ways of the nano codec, random weights."
    import torch
    from dataclasses import replace
    from omni_lite.config import preset
    from omni_lite.omni.voice import Voice
    from omni_lite.omni.model import OmniForCausalLM
    torch.manual_seed(0)
    cfg = preset('nano'); cfg = replace(cfg, flow=replace(cfg.flow, steps=steps))
    model = OmniForCausalLM(cfg).eval()
    return model.tokenizer.encode, lambda codes: Voice(model).push(codes, True)

def mimi() -> tuple: # encode: (L,) at 24 kHz -> codes; decode: codes -> (L,) at 24 kHz
    "transformers' Mimi, eight of its levels, random weights."
    import torch
    from transformers import MimiConfig, MimiModel
    torch.manual_seed(0)
    m = MimiModel(MimiConfig()).eval()
    return (lambda wav: m.encode(wav[None, None], num_quantizers=8).audio_codes,
            lambda codes: m.decode(codes).audio_values[0, 0].numpy())

def same_length(
    a:'ndarray', b:'ndarray', # (L,) sounds
) -> bool: # to one token of 80 ms, and finite
    "Whether both made the same amount of sound."
    import numpy as np
    return abs(len(a) - len(b)) <= 1920 and bool(np.isfinite(a).all() and np.isfinite(b).all())

@bench('codec', 'sound to codes and back, 8 levels, 10 flow steps with guidance', "transformers' Mimi, 8 levels, random weights")
def cases() -> list: # of SoundCase
    "A round trip of 4 s on one thread and on all; the first piece of speech out of five tokens."
    import torch
    (enc, dec), (menc, mdec) = nano_codec(), mimi()
    wav = torch.randn(4 * 48000, generator=torch.Generator().manual_seed(0)).cumsum(0) * 1e-3
    low, high = wav[::3].contiguous(), wav[::2].contiguous()  # 4 s at 16 and at 24 kHz
    ours, theirs = (torch.no_grad()(f) for f in (lambda: dec(enc(low)), lambda: mdec(menc(high))))
    first, mfirst = enc(low)[:5], menc(high)[..., :5]
    return [SoundCase('round trip, 4 s, one thread', one_thread(ours), one_thread(theirs), same_length, 4.),
            SoundCase('round trip, 4 s, all threads', ours, theirs, same_length, 4.),
            SoundCase('first sound out of 5 tokens, all threads', lambda: dec(first), torch.no_grad()(lambda: mdec(mfirst)),
                      same_length, .4)]
