"""Our HiFi-GAN against transformers' port with the same weights, whole and as a stream; and the vocoder of the nano model
against Griffin-Lim. Every row makes sound of the length it names, so ms over that length is the real-time factor."""
from typing import Callable

from omni_lite.bench import Case, bench, one_thread

__all__ = ['equal_sound', 'pair', 'in_windows', 'whole_case', 'stream_case', 'griffin_lim', 'nano_case']

def equal_sound(
    a:'Tensor', b:'Tensor', # (B, L) sounds in [-1, 1]
) -> bool: # the same samples to 1e-4, and no silence, in which everybody agrees
    "Whether two vocoders said the same."
    return a.shape == b.shape and b.std().item() > .01 and (a - b).abs().max().item() < 1e-4

def pair(
    size:str, # a key of HIFIGAN without inverse STFT: v1, v2
    seed:int=0, # of the random weights
) -> tuple: # our HiFiGAN, transformers' SpeechT5HifiGan, both in eval mode
    "The two generators with the same random weights."
    import torch
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig
    from omni_lite.audio.hifigan import HIFIGAN, HiFiGAN, hifigan_state
    torch.manual_seed(seed)
    c = HIFIGAN[size]
    ours = HiFiGAN(c).eval()
    for p in ours.parameters(): p.data *= 1.7  # loud enough to be compared
    theirs = SpeechT5HifiGan(SpeechT5HifiGanConfig(
        model_in_dim=c.num_mels, sampling_rate=c.sample_rate, upsample_initial_channel=c.channels,
        upsample_rates=list(c.rates), upsample_kernel_sizes=list(c.kernels), resblock_kernel_sizes=list(c.res_kernels),
        resblock_dilation_sizes=[list(d) for d in c.dilations], leaky_relu_slope=c.slope)).eval()
    theirs.load_state_dict(hifigan_state(ours, 'transformers'))
    return ours, theirs

def some_mel(frames, seed=0):
    import torch
    return torch.randn(1, 80, frames, generator=torch.Generator().manual_seed(seed)).cumsum(2) * .3 - 3

def whole_case(
    size:str, frames:int, # a key of HIFIGAN; mel frames
) -> Case:
    "One call on the whole mel."
    ours, theirs = pair(size); mel = some_mel(frames); turned = mel.transpose(1, 2).contiguous()
    seconds = frames * ours.cfg.hop / ours.cfg.sample_rate
    return Case(f'{size}, {seconds:.2f} s at once', one_thread(lambda: ours(mel)), one_thread(lambda: theirs(turned)),
                equal_sound)

def in_windows(
    model:Callable, mel:'Tensor', # (1, T, M) -> (1, T * hop); (1, T, M)
    chunk:int, context:int, hop:int, # new frames a call; frames on either side; samples per frame
) -> 'Tensor': # (1, T * hop)
    "What a generator without a stream can do: cut windows with enough context, keep the middle."
    import torch
    out, T = [], mel.shape[1]
    for i in range(0, T, chunk):
        a, b = max(0, i - context), min(T, i + chunk)
        out.append(model(mel[:, a:b + context])[:, hop*(i - a):hop*(b - a)])
    return torch.cat(out, 1)

def stream_case(
    size:str, frames:int, chunk:int, # a key of HIFIGAN; mel frames; new frames a push
) -> Case:
    "The mel arrives in chunks; both sides wait for the same look-ahead and make the same samples."
    import torch
    from omni_lite.audio.hifigan import HiFiGANStream
    ours, theirs = pair(size); mel = some_mel(frames); turned = mel.transpose(1, 2).contiguous()
    hop, context = ours.cfg.hop, -(-ours.cfg.delay // ours.cfg.hop)
    def _stream():
        s = HiFiGANStream(ours)
        return torch.cat([s.push(p) for p in mel.split(chunk, 2)] + [s.finish()], 1)
    name = f'{size}, {frames*hop/ours.cfg.sample_rate:.2f} s in pushes of {1e3*chunk*hop/ours.cfg.sample_rate:.0f} ms'
    return Case(name, one_thread(_stream), one_thread(lambda: in_windows(theirs, turned, chunk, context, hop)), equal_sound)

def griffin_lim(
    mel:'Tensor', # (B, M, T) log-mel of `voice_mel`
    steps:int=32, # iterations
) -> 'Tensor': # (B, 480 (T - 1))
    "Sound without a network: least-squares inverse of the mel, then phases that agree with each other (torchaudio)."
    import torch, torchaudio.functional as AF
    from omni_lite.audio.mel import VOICE_FFT, VOICE_HOP, VOICE_RATE, mel_filters
    inverse = torch.linalg.pinv(mel_filters(VOICE_RATE, VOICE_FFT, mel.shape[1], 8000.).T)  # (K, M)
    return AF.griffinlim((inverse @ mel.exp()).clamp(min=0), torch.hann_window(VOICE_FFT), VOICE_FFT, VOICE_HOP, VOICE_FFT,
                         1., steps, .99, None, True)

def _same_length(a, b): return abs(a.shape[1] - b.shape[1]) <= 480 and bool(a.isfinite().all() and b.isfinite().all())

def nano_case(
    frames:int=50, # mel frames, 50 a second
) -> Case: # random weights: speed does not depend on them
    "Mel in, sound out, with the nano preset's sizes; the two sounds differ, so only their length is compared."
    import torch
    from omni_lite.audio.vocoder import Vocoder
    from omni_lite.config import preset
    torch.manual_seed(0)
    cfg, mel = preset('nano'), some_mel(frames)
    voc = Vocoder(cfg.audio.voice_mels, cfg.vocoder.channels).eval()
    return Case(f'nano vocoder, {frames/50:.2f} s; anchor: Griffin-Lim, 32 steps (another sound of the same mel)',
                one_thread(lambda: voc(mel)), one_thread(lambda: griffin_lim(mel)), _same_length)

@bench('vocoder', 'sound from a mel, one thread, random weights', "transformers' SpeechT5HifiGan, same weights, equal samples")
def _vocoder():
    return [whole_case('v1', 32), whole_case('v2', 86), stream_case('v1', 32, 8), stream_case('v2', 86, 7), nano_case()]
