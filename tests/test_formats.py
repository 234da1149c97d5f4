"""Every sample format written out position by position, the masks under random contents, and what is refused."""
import random, re

import pytest
import torch
from hypothesis import given, settings, strategies as st

from omni_lite.config import TokenIds
from omni_lite.data import interleave as fm
from omni_lite.data.interleave import FORMATS, format_row
from omni_lite.omni.rows import RowBuilder
from omni_lite.text import SAY, TRANSCRIBE, encode_text, train_tokenizer

I, L, SIZES, END = TokenIds(), 3, (8, 4, 4), 8
TOK = train_tokenizer(['a cat sees the red dog. what is this? a bell. tom has it.'] * 5)
B = RowBuilder(TOK, SIZES)
PIC, CODES = (torch.zeros(8, 12), (1, 2, 4)), torch.tensor([[5, 1, 2], [0, 3, 1]])  # 2 positions, 2 frames
HEARD, FRAME = (CODES, None), (torch.ones(4, 12), (1, 2, 2))

def t(s): return encode_text(TOK, s)

# A position is (id, label or None, codes or None, code label or None); what follows is written without the library.
def quiet(*ids): return [(i, None, None, None) for i in ids]
def loud(*ids): return [(i, i, None, None) for i in ids]
def heard(codes=CODES): return [*quiet(I.hear[0]), *[(I.hear[1], None, c, None) for c in codes.tolist()], *quiet(I.hear[2])]
def seen(n=2, pad=I.see[1]): return quiet(I.see[0], *[pad]*n, I.see[2])
def made(codes=CODES):
    "The start tag is predicted by the text head; frame k by the state before it; the end tag holds the end code."
    return [*loud(I.speak[0]), *[(I.speak[1], None, c, c) for c in codes.tolist()],
            (I.speak[2], None, None, [END] + [-100]*(L - 1))]
def nothing_first(cols): return [(cols[0][0], None, *cols[0][2:]), *cols[1:]]

def same(row, cols):
    assert row.ids.tolist() == [c[0] for c in cols]
    assert row.labels.tolist() == [-100 if c[1] is None else c[1] for c in cols]
    assert row.codes.tolist() == [c[2] or [-1]*L for c in cols]
    assert row.code_labels.tolist() == [c[3] or [-100]*L for c in cols]

def asked(*question, aloud=()): return [*quiet(I.user), *question, *quiet(*aloud), *quiet(I.assistant)]

STORY = 'a cat. the red dog. a bell. tom has it.'
def spoken(s): return (CODES, None) if s == 'a bell.' else None

HAND = {
    'text': (('a cat.',), nothing_first([*loud(*t('a cat.')), *loud(I.end)])),
    'asr': ((HEARD, 'a cat.'), [*asked(*quiet(*t(TRANSCRIBE)), *heard()), *loud(*t('a cat.'), I.end)]),
    'aqa': ((HEARD, 'a bell.', 'what is this?'),
            [*asked(*quiet(*t('what is this?')), *heard()), *loud(*t('a bell.'), I.end)]),
    's2tt': ((HEARD, 'un chat.', 'french'),
             [*asked(*quiet(*t('please translate into french.')), *heard()), *loud(*t('un chat.'), I.end)]),
    'tts': (('a cat.', HEARD), [*asked(*quiet(*t(f'{SAY} a cat.')), aloud=[I.aloud]), *quiet(*t('a cat.')), *made(),
                                *loud(I.end)]),
    'audio': ((HEARD,), nothing_first([*made(), *loud(I.end)])),
    'intlv': (([HEARD, 'a cat', HEARD, 'a dog.'],),
              [*heard(), *loud(*t('a cat')), *heard(), *loud(*t('a dog.'), I.end)]),
    'itts': (([('a cat', HEARD), ('sees the dog.', HEARD)],),
             [*quiet(*t('a cat')), *made(), *loud(*t('sees the dog.')), *made(), *loud(I.end)]),
    'caption': ((PIC, 'the red dog.'), [*asked(*seen(), *quiet(*t('describe.'))), *loud(*t('the red dog.'), I.end)]),
    'ocr': ((PIC, 'tom has it.'), [*asked(*seen(), *quiet(*t('please read the text.'))), *loud(*t('tom has it.'), I.end)]),
    'vqa': ((PIC, 'what is this?', 'a bell.'), [*asked(*seen(), *quiet(*t('what is this?'))), *loud(*t('a bell.'), I.end)]),
    'imgtext': ((['a cat.', PIC, 'a dog.', PIC],),
                nothing_first([*loud(*t('a cat.')), *seen(), *loud(*t('a dog.')), *seen(), *quiet(I.end)])),
    'video': (([PIC, FRAME], 'what is this?', 'a bell.'),
              [*asked(*seen(2, I.frame), *seen(1, I.frame), *quiet(*t('what is this?'))), *loud(*t('a bell.'), I.end)]),
    'cross': ((PIC, STORY, spoken, random.Random(0)),
              [*asked(*seen(), *quiet(*t('please listen and complete.')), *heard()),
               *loud(*t('a cat. the red dog. tom has it.'), I.end)]),
    'reply': ((HEARD, [('a cat', HEARD), ('a dog.', HEARD)]),
              [*asked(*heard(), aloud=[I.aloud]), *loud(*t('a cat')), *made(), *loud(*t('a dog.')), *made(), *loud(I.end)]),
}

def test_every_format_is_written_out(): assert set(HAND) == set(FORMATS)

@pytest.mark.parametrize('name', FORMATS)
def test_position_by_position(name):
    material, cols = HAND[name]
    row = format_row(B, name, *material)
    same(row, cols)
    assert row.kind == ('chat' if name == 'reply' else name)

def test_intlv_may_start_with_text_and_end_with_sound():
    row = format_row(B, 'intlv', ['a cat', HEARD])
    same(row, nothing_first([*loud(*t('a cat')), *heard(), *quiet(I.end)]))

def test_answer_in_one_segment_and_further_turns():
    row = fm.chat_row(B, lambda b: b.text('what is this?'), 'a bell.', then=[('a cat?', 'a dog.')])
    same(row, [*asked(*quiet(*t('what is this?'))), *loud(*t('a bell.'), I.end), *asked(*quiet(*t('a cat?'))),
               *loud(*t('a dog.'), I.end)])
    row = fm.chat_row(B, 'what is this?', 'a bell.', HEARD)
    same(row, [*asked(*quiet(*t('what is this?')), aloud=[I.aloud]), *loud(*t('a bell.')), *made(), *loud(I.end)])

def test_one_frame_of_speech():
    one = CODES[:1]
    same(format_row(B, 'audio', (one, None)), nothing_first([*made(one), *loud(I.end)]))

def test_spoken_question_needs_no_prompt():
    same(format_row(B, 'aqa', HEARD, 'a cat.'), [*asked(*heard()), *loud(*t('a cat.'), I.end)])

def test_tags_in_text_are_letters():
    row = format_row(B, 'vqa', PIC, 'hi <C_A> yes', 'a cat.')
    assert (row.ids == I.assistant).sum() == 1

def test_word_labels_stay_apart():
    "Words in progress are asked of the state: behind a heard frame, before a made one; they are no labels of the format."
    plain, row = (format_row(B, 'asr', (CODES, a), 'a cat.') for a in (None, [20, 21]))
    assert torch.equal(plain.labels, row.labels) and torch.equal(plain.code_labels, row.code_labels)
    at = (row.ids == I.hear[1]).nonzero()[:, 0]
    assert row.align[at].tolist() == [20, 21] and (row.align >= 0).sum() == 2
    row = format_row(B, 'audio', (CODES, [20, 21]))
    assert row.align.tolist() == [20, 21, -100, -100, -100]

# The same claims read off the ids alone, for contents nobody chose.
def regions(row):
    "For each position: (is the user speaking, has the assistant spoken, number of the text segment or None)."
    ids, text, user, answer, n, out = row.ids.tolist(), False, False, False, 0, []
    tags = {I.end, I.system, I.user, I.assistant, *I.hear, *I.see, I.frame, I.aloud, *I.speak}
    for i in ids:
        user = i == I.user or user and i != I.assistant
        answer = i == I.assistant or answer and i != I.user
        if i not in tags and not text: n += 1
        text = i not in tags
        out.append((user, answer, n if text else None))
    return out

def claimed(row, bears):
    "Positions that bear a text label and a code label according to the table, (T,) and (T,)."
    labels, codes = [], []
    for i, (user, answer, segment) in zip(row.ids.tolist(), regions(row)):
        own = segment and not user
        word = own and ('text' in bears or 'answer' in bears and answer or 'later text' in bears and segment > 1)
        end = i == I.end and (labels[-1] or codes[-1])  # of what bears loss
        labels.append(bool(word or end or i == I.speak[0] and 'audio' in bears))
        codes.append(i in I.speak[1:] and 'audio' in bears)
    return [False, *labels[1:]], codes  # nothing precedes the first position

words = st.lists(st.sampled_from('a cat sees the red dog bell tom zebra ñandú 42'.split()), min_size=1, max_size=5).map(' '.join)
sounds = st.integers(1, 4).flatmap(lambda n: st.lists(st.tuples(*[st.integers(0, k - 1) for k in SIZES]), min_size=n,
                                                      max_size=n)).map(lambda c: (torch.tensor(c), None))
pictures = st.integers(1, 3).map(lambda n: (torch.zeros(4*n, 12), (1, 2, 2*n)))
pairs = st.lists(st.tuples(words, sounds), min_size=1, max_size=3)
turns = st.tuples(st.booleans(), pairs).map(lambda x: [p for w, s in x[1] for p in ((w, s) if x[0] else (s, w))])
documents = st.tuples(words, pictures, st.lists(words | pictures, max_size=4)).flatmap(lambda x: st.permutations([*x[:2], *x[2]]))
stories = st.lists(words.map(lambda w: w + '.'), min_size=2, max_size=9).map(' '.join)
CONTENTS = dict(text=st.tuples(words), asr=st.tuples(sounds, words), aqa=st.tuples(sounds, words, st.just('') | words),
    s2tt=st.tuples(sounds, words, words), tts=st.tuples(words, sounds), audio=st.tuples(sounds), intlv=st.tuples(turns),
    itts=st.tuples(pairs), caption=st.tuples(pictures, words), ocr=st.tuples(pictures, words),
    vqa=st.tuples(pictures, words, words), imgtext=st.tuples(documents),
    video=st.tuples(st.lists(pictures, min_size=1, max_size=4), words, words),
    cross=st.tuples(pictures, stories, sounds.map(lambda s: lambda _: s), st.integers(0, 99).map(random.Random)),
    reply=st.tuples(words | sounds, pairs))

@pytest.mark.parametrize('name', FORMATS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_loss_is_where_the_table_says(name, data):
    row = format_row(B, name, *data.draw(CONTENTS[name]))
    labels, codes = claimed(row, FORMATS[name].bears)
    assert (row.labels >= 0).tolist() == labels
    assert (row.code_labels >= 0).any(-1).tolist() == codes
    there = row.labels >= 0
    assert torch.equal(row.labels[there], row.ids[there])  # a label sits at the position of the thing predicted
    for k, i in enumerate(row.ids.tolist()):
        if i == I.speak[1]: assert torch.equal(row.code_labels[k], row.codes[k])
        if i == I.speak[0]: assert (row.codes[k] < 0).all() and (row.code_labels[k] < 0).all() and row.ids[k + 1] == I.speak[1]
        if i == I.speak[2]: assert row.labels[k] == -100 and row.code_labels[k, 0] == END and row.ids[k - 1] == I.speak[1]
    assert not any(user and (a or c) for (user, _, _), a, c in zip(regions(row), labels, codes))
    assert (row.ids == I.end).sum() == 1 and row.labels[0] == -100

def test_the_oracle_sees_a_wrong_mask():
    "The reading of the ids is no echo of the labels: a loss on the prompt is found."
    row = format_row(B, 'asr', HEARD, 'a cat.')
    row.labels[1] = row.ids[1]
    assert (row.labels >= 0).tolist() != claimed(row, FORMATS['asr'].bears)[0]

# A quarter is spoken
@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 40), seed=st.integers(0, 999))
def test_a_quarter_is_spoken(n, seed):
    told, calls = [f'sentence {i}.' for i in range(n)], []
    found = fm.spoken_quarter(told, lambda s: calls.append(s) or HEARD, random.Random(seed))
    assert abs(len(found) - n/4) <= .5 and list(found) == sorted(found)
    assert len(calls) == len(found)  # a synthesizer speaks nothing that is not used
    assert found.keys() == fm.spoken_quarter(told, lambda s: HEARD, random.Random(seed)).keys()

def test_every_sentence_is_told_once():
    "What is heard and what is to be written make the story, nothing twice."
    said = {s: torch.tensor([[k, 0, 0]]) for k, s in enumerate(fm.sentences(STORY))}
    drawn = set()
    for seed in range(20):
        row = format_row(B, 'cross', PIC, STORY, lambda s: (said[s], None), random.Random(seed))
        k = row.codes[row.codes[:, 0] >= 0][:, 0].tolist()
        drawn.update(k)
        rest = [s for i, s in enumerate(said) if i not in k]
        assert row.ids[row.labels >= 0].tolist() == [*t(' '.join(rest)), I.end]
    assert drawn == {0, 1, 2, 3}

def test_sentences():
    assert fm.sentences(' a cat. a dog? 1.5 bells!  tom ') == ['a cat.', 'a dog?', '1.5 bells!', 'tom']
    assert fm.sentences('一只猫。一只狗。') == ['一只猫。', '一只狗。']

# Bad input: one sentence that names the thing, and a builder that starts afresh.
THIN, WIDE, NONE = (CODES[:, :2], None), (CODES + 4, None), (CODES[:0], None)
BAD = {
    'empty text': ('text', ('  ',), 'a text segment is empty'),
    'empty transcript': ('asr', (HEARD, ''), 'a text segment is empty'),
    'empty segment': ('itts', ([('a cat', HEARD), ('', HEARD)],), 'a text segment is empty'),
    'no segments': ('itts', ([],), 'has no segment to learn'),
    'no speech to learn': ('tts', ('a cat.', None), 'has no segment to learn'),
    'no speech to hear': ('asr', (None, 'a cat.'), 'a segment is None: give text'),
    'no picture to see': ('vqa', (None, 'what?', 'a cat.'), 'a segment is None'),
    'depth': ('asr', (THIN, 'a cat.'), r'codes of shape \(2, 2\) instead of \(frames, 3\)'),
    'depth of an answer': ('tts', ('a cat.', THIN), r'instead of \(frames, 3\)'),
    'flat codes': ('audio', ((CODES[0], None),), r'codes of shape \(3,\)'),
    'range': ('audio', (WIDE,), r'outside the codebooks of \(8, 4, 4\)'),
    'end code inside': ('audio', ((torch.tensor([[END, 0, 0]]), None),), 'outside the codebooks'),
    'negative': ('asr', ((CODES - 1, None), 'a cat.'), 'outside the codebooks'),
    'no frames': ('intlv', ([NONE, 'a cat.'],), 'a sound has no frames'),
    'word labels': ('asr', ((CODES, [3]), 'a cat.'), '2 frames but 1 word labels'),
    'two sounds': ('intlv', ([HEARD, HEARD, 'a cat'],), 'do not alternate'),
    'one segment': ('intlv', (['a cat'],), 'do not alternate'),
    'no picture': ('imgtext', (['a cat.'],), 'lacks text or pictures'),
    'no text': ('imgtext', ([PIC],), 'lacks text or pictures'),
    'no language': ('s2tt', (HEARD, 'un chat.', ' '), 'names no language'),
    'no clip': ('video', ([], 'what?', 'a cat.'), 'no frames'),
    'nothing spoken': ('cross', (PIC, STORY, {}.get, random.Random(0)), '1 of 4 sentences should be spoken but 0 can be'),
    'one sentence': ('cross', (PIC, 'a cat.', spoken, random.Random(0)), 'fewer than two sentences'),
    'name': ('smell', (), 'no format is named smell: known are text, asr'),
}

@pytest.mark.parametrize('name', BAD)
def test_refused(name):
    kind, material, message = BAD[name]
    with pytest.raises(ValueError, match=message) as e: format_row(B, kind, *material)
    assert len(re.findall(r'[.!?](?:\s|$)', str(e.value))) == 0 and '\n' not in str(e.value)  # one sentence
    same(format_row(B, 'text', 'a cat.'), HAND['text'][1])  # nothing is left over

def test_a_broken_file_leaves_nothing_behind():
    def broken(b): b.text('half'); raise OSError('no such file')
    with pytest.raises(OSError): fm.caption_row(B, broken, 'a cat.')
    same(format_row(B, 'text', 'a cat.'), HAND['text'][1])

def test_amounts_are_those_of_the_report():
    "Hours of the seven audio formats sum to the total that the report prints."
    hours = [int(f.amount.split('k')[0]) for f in FORMATS.values() if f.amount.endswith('k h')]
    assert len(hours) == 7 and sum(hours) == 887
