"""A spoken answer of the shipped checkpoint: when the first sound leaves, what the whole costs, and what a later turn costs.

The anchor does what the released loop does with the same weights: a stretch of speech is decoded when it is complete, and every
turn reads the whole conversation again."""
from dataclasses import dataclass
from functools import partial

from omni_lite.bench import Case, bench

__all__ = ['Spoken', 'first_sound', 'whole_first', 'tenth_turn']

QUESTION = [dict(role='user', content='tom has a red bus and a blue hat. what color is the bus?')]

@dataclass(frozen=True)
class Spoken(Case):
    "A case with the waterfall of its last answer beside it."
    timings: dict = None # filled by the run

    def extra(self,
        row:dict, # of this case
    ) -> dict: # first_sound_ms, rtf, waterfall and how far its sum is from the total, in percent
        "Where the time of our answer went."
        t = self.timings or {}
        if 'laps' not in t: return {}
        gap = 100 * abs(sum(t['laps'].values()) / t['first_sound_s'] - 1)
        return dict(first_sound_ms=round(1e3*t['first_sound_s'], 1), rtf=round(t['rtf'], 3), sum_off_percent=round(gap, 2),
                    waterfall_ms={k: round(1e3*v, 1) for k, v in t['laps'].items()})

def _load():
    from omni_lite.omni.generate import OmniForCausalLM
    from omni_lite.omni.processor import OmniProcessor
    from omni_lite.paths import shipped
    return OmniForCausalLM.from_pretrained(shipped('nano')), OmniProcessor.from_pretrained(shipped('nano'))

def first_sound(
    m:'OmniForCausalLM', p:'OmniProcessor', messages:list, # a checkpoint; a question
) -> 'ndarray': # (n,) at 24 kHz
    "The first piece of sound of a streamed answer."
    return next(e.sound for e in m.chat(messages, p, speak=True) if e.kind == 'sound')

def whole_first(
    m:'OmniForCausalLM', p:'OmniProcessor', messages:list, # a checkpoint; a question
) -> 'ndarray': # (n,) at 24 kHz
    "The first sound where a stretch of speech is decoded when it is complete."
    from omni_lite.config import replace
    how = replace(m.cfg.sampling, first_tokens=10**6, then_tokens=10**6)
    return next(e.sound for e in m.chat(messages, p, speak=True, how=how) if e.kind == 'sound')

def tenth_turn(
    m:'OmniForCausalLM', p:'OmniProcessor', # a checkpoint
) -> tuple: # two functions () -> text
    "The tenth answer of a conversation: read on top of nine turns in memory, and with all ten read again."
    from omni_lite.omni.generate import Conversation
    past, q = [QUESTION[0], dict(role='assistant', content='red.')]*9, QUESTION
    talk = Conversation(m, p).add(past)
    talk.step()
    begin = talk.length
    answer = lambda c: list(c.reply(speak=False))[-1].text
    def remembered():
        talk.decoder.back_to(begin)
        talk.length, talk.next = begin, None
        return answer(talk.add(q))
    return remembered, lambda: answer(Conversation(m, p).add(past).add(q))

@bench('latency', 'a spoken answer of the shipped nano', 'the same weights, speech decoded when a segment is complete')
def cases() -> list: # of Case
    "First sound of a typed and of a spoken question on all threads, with waterfall and real-time factor; a late turn."
    import numpy as np
    m, p = _load()
    wav = m.say('what color is the bus?', p)[0]
    asked = {'typed question': QUESTION, 'spoken question': [dict(role='user', content=[
        dict(type='text', text='tom has a red bus.'), dict(type='audio', audio=(wav, 24000))])]}
    ok = lambda a, b: bool(np.isfinite(a).all() and np.isfinite(b).all() and len(a) <= len(b))
    out = []
    for name, q in asked.items():
        t = {}
        case = Spoken(f'{name}, first sound', partial(first_sound, m, p, q), partial(whole_first, m, p, q), ok, t)
        t.update(m.generate(q, p, speak=True)[2]); t.update(m.generate(q, p, speak=True)[2])  # the first one warms up
        out.append(case)
    return [*out, Case('tenth turn, whole text answer', *tenth_turn(m, p), lambda a, b: a == b)]
