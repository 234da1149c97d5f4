"""The world: answers are right, splits are clean, everything is deterministic, the samples are what they say."""
import itertools, json, random, re, subprocess, sys, warnings
from dataclasses import replace
import numpy as np
import pytest
from PIL import Image

from omni_lite.data.pictures import (COLORS, EMOJI, HANDS, HELD, KIND, LEARNT, MOTIONS, SHAPES, SHOWN, SMALL_THINGS, STYLES,
                                     clip_moment, cover, emoji, render_clip, render_picture, samples_path, styles_of,
                                     write_clip)
from omni_lite.data.sounds import RECIPES, SOUNDS, render_sound
from omni_lite.data.world import FAMILIES, World, an, as_rng

def _spell(text): return re.findall(r'[a-z]+', text)

@pytest.fixture(scope='module')
def small(): return World()

@pytest.fixture(scope='module')
def full():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return World('full')

def _many(world, family, split='train', n=200, seed=0):
    rng = random.Random(seed)
    return [world.sample(family, split, rng) for _ in range(n)]

SMALL_FAMILIES, FULL_FAMILIES = World().families, [f.name for f in FAMILIES.values()]

# ---- language

@pytest.mark.parametrize('family', FULL_FAMILIES)
def test_language_is_short_and_lower_case(full, family):
    for s in _many(full, family):
        text = ' '.join([*itertools.chain(*s.history), s.question, s.answer, s.caption])
        assert re.fullmatch(r'[a-z ,.?]+', text), text
        assert 1 <= len(_spell(s.answer)) <= 6 and s.answer.endswith('.') and s.caption.endswith('.')
        assert len(s.question.split()) <= 14 and not re.search(r'  | [,.?]|[{}]', text)
        assert set(_spell(text)) <= full.words

def test_articles(small, full):
    assert [an(x) for x in ('umbrella', 'black egg', 'orange car')] == ['an umbrella', 'a black egg', 'an orange car']
    assert an('food') == 'food'
    for line in itertools.islice(full.corpus(0), 2000):
        assert not re.search(r'\ba [aeiou]|\ban [^aeiou]', line), line

def test_small_vocabulary(small, full):
    assert 60 <= len(small.words) <= 100 and len(small.things) == 30 and 8 <= len(small.sounds)
    assert small.words < full.words and 300 <= len(full.words) <= 900

def test_corpus_knows_every_word_and_no_other(small):
    lines = list(itertools.islice(small.corpus(0), 4000))
    assert set(_spell(' '.join(lines))) == small.words
    assert lines[:50] == list(itertools.islice(small.corpus(0), 50)) != list(itertools.islice(small.corpus(1), 50))

def test_several_wordings(small):
    for f in small.families: assert len(FAMILIES[f].wordings) >= 2

# ---- truth, checked from the question's own text or from the spec, not from the generator's slots

def _answer_text(s):
    "The right answer, found by reading."
    q = s.question
    if s.family == 'say': return re.sub(r'^(please say|say this), ', '', q)
    if s.family == 'color':
        thing = re.search(r'(?:is|of) the (\w+)[?.]', q)[1]
        return re.search(rf'(\w+) {thing}\b', re.sub(r'(is|of) the \w+[?.]', '', q))[1] + '.'
    if s.family == 'where': return re.search(r'is ((?:in|on|under) the \w+)\.', q)[1] + '.'
    if s.family == 'who':
        verb, thing = re.search(r'who (\w+) the (\w+)\?', q).groups()
        return re.search(rf'(\w+) {verb} an? {thing}\b', q)[1] + '.'
    if s.family == 'count':
        order, n = re.search(r'comes (after|before) (\w+)', q).groups()
        numbers = 'one two three four five six'.split()
        return numbers[numbers.index(n) + (1 if order == 'after' else -1)] + '.'
    if s.family == 'kind':
        thing = next(w for w in _spell(q) if w in KIND)
        return an(KIND[thing]) + '.'

@pytest.mark.parametrize('family', ['say', 'color', 'where', 'who', 'count', 'kind'])
@pytest.mark.parametrize('split', ['train', 'test'])
def test_text_answers_are_right(small, family, split):
    for s in _many(small, family, split): assert s.answer == _answer_text(s), s

def test_opposites_go_both_ways(full):
    assert all(full.opposites[full.opposites[w]] == w != full.opposites[w] for w in full.opposites)

def test_picture_answers_are_right(small):
    for s in _many(small, 'how_many') + _many(small, 'how_many', 'test'): assert s.answer == small.numbers[len(s.image['items']) - 1] + '.'
    for s in _many(small, 'thing'): assert s.answer == an(s.image['items'][0]['thing']) + '.'
    for s in _many(small, 'side'):
        items = sorted(s.image['items'], key=lambda i: i['x'])
        assert s.answer == an(items['right' in s.question]['thing']) + '.'
    for s in _many(small, 'shape_color'):
        right, = (i for i in s.image['items'] if i['shape'] in s.question)
        assert s.answer == right['color'] + '.'

def test_motion_is_what_the_pixels_do(small):
    "Where the thing is, measured in the drawn frames."
    for s in _many(small, 'motion', n=80):
        masks = [(np.abs(np.asarray(f, int) - s.clip['background']).sum(-1) > 30) for f in render_clip(s.clip)]
        area = [m.sum() for m in masks]
        at = [np.argwhere(m).mean(0) if m.any() else None for m in masks]
        verb = s.answer.rstrip('.').split()[2:]
        if verb[0] == 'goes':
            dy, dx = at[-1] - at[0]
            across = 'right' if dx > 0 else 'left'
            assert verb[1] == (across if abs(dx) > abs(dy) else 'down' if dy > 0 else 'up')
        elif verb[0] in ('grows', 'shrinks'): assert (area[-1] > 2*area[0]) == (verb[0] == 'grows')
        else: assert (area[0] == 0) == (verb[0] == 'appears') and (area[-1] == 0) == (verb[0] == 'vanishes')

def test_items_do_not_overlap_and_stay_inside(small):
    for family in ('how_many', 'side', 'shape_color', 'thing'):
        for s in _many(small, family):
            items = s.image['items']
            for i in items: assert all(-.005 <= i[k] - i['scale']/2 and i[k] + i['scale']/2 <= 1.005 for k in 'xy'), s
            for a, b in itertools.combinations(items, 2):
                assert max(abs(a['x'] - b['x']), abs(a['y'] - b['y'])) > (a['scale'] + b['scale'])/2 - .03, s

# ---- splits

@pytest.mark.parametrize('family', FULL_FAMILIES)
def test_train_never_tells_a_held_out_fact(full, family):
    train, test = (_many(full, family, split, 400) for split in ('train', 'test'))
    assert not any(full.held_out(f) for s in train for f in s.facts)
    assert all(full.held_out(s.facts[0]) for s in test)
    assert not {s.facts[0] for s in test} & {f for s in train for f in s.facts}

def test_held_out_across_families(small):
    "A fact held out of the color questions is not told by the please-say sentences either."
    told = {s.facts[0] for s in _many(small, 'say', n=3000)}
    assert not told & {s.facts[0] for s in _many(small, 'color', 'test', 2000)}

@pytest.mark.parametrize('family', 'thing where color kind count shape_color how_many sound opposite'.split())
@pytest.mark.parametrize('seed', [0, 1])
def test_every_test_answer_is_known_from_training(family, seed):
    w = World(seed=seed)
    assert {s.answer for s in _many(w, family, 'test', 500)} <= {s.answer for s in _many(w, family, 'train', 2000)}

def test_held_out_style(small):
    def styles(split, family): return {i['style'] for s in _many(small, family, split) for i in s.image['items']}
    for family in ('thing', 'side', 'how_many'):
        assert styles('test_style', family) == {HELD}
        assert styles('test', family) == set(SHOWN) and styles('train', family) == set(LEARNT)
    assert {s.clip['style'] for s in _many(small, 'motion', 'test_style')} == {HELD}
    assert HELD not in LEARNT and set(SHOWN) < set(LEARNT) and {*LEARNT, HELD} == set(STYLES)

@pytest.mark.parametrize('family', ['thing', 'side', 'how_many'])
def test_one_hand_a_picture_in_training_none_in_tests(small, family):
    looks = [{(i['style'], i['hand']) for i in s.image['items']} for s in _many(small, family, n=400)]
    assert all(len(l) == 1 for l in looks)
    hands = [h for (_, h), in looks]
    assert .1 < np.mean([h == 0 for h in hands]) < .4 and len(set(hands)) == HANDS
    for split in ('test', 'test_style'):
        assert not any(i.get('hand') for s in _many(small, family, split) for i in s.image['items'])

def test_hands_change_neither_question_nor_order(small, monkeypatch):
    "The store's sentences are found again by their seeds."
    seeds = range(200)
    asked = lambda: [(s.question, s.answer) for s in (World().sample('side', rng=k) for k in seeds)]
    before = asked()
    monkeypatch.setattr('omni_lite.data.world._draw_again', lambda slots, r: None)
    assert asked() == before

def test_held_out_counts_are_shown_pure(small):
    kinds = lambda split: [(len(s.image['items']), len({i['thing'] for i in s.image['items']}))
                           for s in _many(small, 'how_many', split, 400)]
    assert all(k == 1 for _, k in kinds('test'))
    assert .3 < np.mean([k > 1 for n, k in kinds('train') if n > 1]) < .6

@pytest.mark.parametrize('name', ['cat', 'broom'])
def test_a_hand_draws_the_same_again(name):
    spec = dict(background=[200, 200, 200], items=[dict(thing=name, style='noto', x=.5, y=.5, scale=.8, hand=7)])
    plain = dict(spec, items=[dict(spec['items'][0], hand=0)])
    assert render_picture(spec).tobytes() == render_picture(spec).tobytes() != render_picture(plain).tobytes()

@pytest.mark.parametrize('family', SMALL_FAMILIES)
def test_deterministic(family):
    a, b = (_many(World(), family, 'test', 20, seed=3) for _ in range(2))
    assert a == b != _many(World(), family, 'test', 20, seed=4)
    json.dumps([a[0].image, a[0].clip, a[0].sound])  # plain data

def test_same_in_another_process(small):
    "Python salts its own hash; the split must not depend on it."
    code = ('from omni_lite.data.world import World; w = World(); '
            'print([w.sample(f, "test", 5).question for f in w.families])')
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert eval(out) == [small.sample(f, 'test', 5).question for f in small.families]

def test_any_generator():
    assert as_rng(3).random() == random.Random(3).random()
    a, b = (World().sample('say', 'train', np.random.default_rng(2)) for _ in range(2))
    assert a == b
    w = World()
    assert w.sample('say') != w.sample('say')  # its own generator moves on

@pytest.mark.parametrize('args, word', [(('smell',), 'family'), (('say', 'dev'), 'split'), (('dialogue',), 'family'),
                                        (('sound', 'test_style'), 'style')])
def test_bad_requests(small, args, word):
    with pytest.raises(ValueError, match=word): small.sample(*args)

def test_bad_world():
    with pytest.raises(ValueError, match='small or full'): World('tiny')

def test_chance(small):
    c = {f: small.chance(f, 500) for f in small.families}
    assert c['kind'] == c['who'] == .5 and c['say'] < .02
    assert abs(c['how_many'] - .2) < .08 and abs(c['sound'] - 1/9) < .08 and c['thing'] < .12
    assert c == {f: World().chance(f, 500) for f in small.families}

def test_full_world_says_what_it_goes_without(monkeypatch):
    monkeypatch.setattr('omni_lite.data.pictures.fetched', lambda name: None)
    with pytest.warns(UserWarning, match='show only 30 of the'): w = World('full')
    for s in _many(w, 'thing', n=30): render_picture(s.image, 32)

# ---- drawing and sounding

@pytest.mark.parametrize('style', STYLES)
def test_every_small_thing_in_every_style(style):
    known = [n for n in SMALL_THINGS if style in styles_of(n)]
    seen = {emoji(n, style).resize((16, 16)).convert('RGBA').tobytes() for n in known}
    assert len(seen) == len(known) >= len(SMALL_THINGS) - 1

def test_small_pictures_are_small_files():
    files = list((samples_path()/'pictures').rglob('*.png'))
    assert len(files) == 148 and max(f.stat().st_size for f in files) < 6000

def test_samples_folder_can_be_moved(monkeypatch, tmp_path):
    (tmp_path/'pictures/noto').mkdir(parents=True)
    Image.new('RGBA', (8, 8), (1, 2, 3, 255)).save(tmp_path/'pictures/noto/cat.png')
    monkeypatch.setenv('OMNI_LITE_SAMPLES', str(tmp_path))
    assert emoji('cat').getpixel((0, 0)) == (1, 2, 3, 255)
    monkeypatch.setattr('omni_lite.data.pictures.fetched', lambda name: None)
    with pytest.raises(ValueError, match='no drawing'): emoji('dog')

@pytest.mark.parametrize('size', [28, 56, 112, 224])
def test_sizes(small, size):
    s = small.sample('side', rng=0)
    assert render_picture(s.image, size).size == (size, size)
    assert [f.size for f in render_clip(small.sample('motion', rng=0).clip, size)] == [(size, size)]*4

@pytest.mark.parametrize('color', COLORS)
@pytest.mark.parametrize('shape', SHAPES)
def test_shape_has_its_color_in_the_middle(shape, color):
    spec = dict(background=[200, 200, 200], items=[dict(shape=shape, color=color, x=.5, y=.5, scale=.5)])
    assert render_picture(spec, 64).getpixel((32, 32)) == COLORS[color]

@pytest.mark.parametrize('motion', MOTIONS)
def test_clip_file_is_the_clip(tmp_path, motion):
    import av
    spec = dict(background=[200, 210, 220], thing='lion', style='fluent', motion=motion, x=.5, y=.5, scale=.4, onset=2)
    file = write_clip(spec, tmp_path/'lion.mp4')
    with av.open(str(file)) as box:
        frames = [f.to_image() for f in box.decode(video=0)]
        assert float(box.streams.video[0].average_rate) == 8 and len(frames) == 32
    for drawn, read in zip(render_clip(spec, 112), frames[::8]):
        assert np.abs(np.asarray(drawn, int) - np.asarray(read, int)).mean() < 5

@pytest.mark.parametrize('name', RECIPES)
@pytest.mark.parametrize('dials', [(0, 0), (1, 1), (0, 1), (1, 0)])
def test_sounds_are_sane_at_the_ends_of_the_dials(name, dials):
    for seconds in (.4, 1.6):
        x = render_sound(dict(name=name, a=dials[0], b=dials[1], seconds=seconds, seed=2))
        assert x.dtype == np.float32 and x.shape == (round(seconds*16000),) and np.isfinite(x).all()
        assert .5 < np.abs(x).max() <= 1 and abs(x.mean()) < .05

@pytest.mark.parametrize('bad', [dict(name='violin'), dict(name='bell', seconds=0), dict(name='bell', seconds=1e9)])
def test_bad_sounds(bad):
    with pytest.raises(ValueError): render_sound(bad)

def test_loudness_does_not_name_the_sound(small):
    sounds = [s.sound for s in _many(small, 'sound', n=60)]
    peaks = {n: [np.abs(render_sound(x)).max() for x in sounds if x['name'] == n] for n in ('bell', 'rain')}
    assert abs(np.mean(peaks['bell']) - np.mean(peaks['rain'])) < .25

# ---- data_samples

def test_samples_are_what_their_specs_say():
    import av, soundfile
    home = samples_path()
    for name, spec in json.loads((home/'specs.json').read_text()).items():
        if name.endswith('.wav'):
            x, rate = soundfile.read(home/name, dtype='float32')
            assert rate == 16000 and np.abs(x - render_sound(spec)).max() < 2e-4
        else:
            with av.open(str(home/name)) as box: first = next(box.decode(video=0)).to_image()
            assert np.abs(np.asarray(first, int) - np.asarray(render_clip(spec, first.width)[0], int)).mean() < 5

def test_the_person_and_the_photograph():
    import soundfile
    home = samples_path()
    x, rate = soundfile.read(home/'speech/person.wav')
    assert rate == 16000 and x.ndim == 1 and 1 < len(x)/rate <= 6 and (home/'speech/person.txt').read_text().split()
    assert (home/'photo_cat.jpg').stat().st_size <= 100_000 and min(Image.open(home/'photo_cat.jpg').size) >= 256

def test_every_sample_is_in_the_licence_table():
    text = (samples_path()/'LICENSES.md').read_text()
    for p in samples_path().iterdir():
        if p.name not in ('LICENSES.md', 'specs.json'): assert p.name in text, p.name

def test_sounds_of_the_small_world_exist(small):
    assert set(small.sounds) == set(SOUNDS) and set(SMALL_THINGS) <= set(EMOJI)

# ---- looking things up, and where things lie

@pytest.mark.parametrize('owned, n', itertools.product((True, False), (2, 3, 4)))
def test_a_passage_tells_what_it_asks_and_nothing_held_out(small, owned, n):
    rng = random.Random(n)
    for _ in range(100):
        text, verb, pairs = small.passage(rng, owned, n)
        who = text.split()[0]
        assert len(pairs) == n == len(dict(pairs)) and text.endswith('.') and set(_spell(text)) <= small.words
        for thing, value in pairs:
            assert (f'{value} {verb} {an(thing)}' if owned else f'{value} {thing}') in text
            assert not small.held_out((value, verb, thing) if owned else (who, verb, value, thing))

@pytest.mark.parametrize('family', ['who', 'color', 'side', 'shape_color'])
def test_further_questions_have_their_own_right_answers(small, family):
    more = [(s, q, a) for s in _many(small, family, 'test', 300) for q, a in s.more]
    assert len(more) > 90
    for s, q, a in more:
        assert a.endswith('.') and a[:-1] in s.caption and q[-1] in '.?' and q == q.strip()
        assert a != s.answer and set(_spell(q)) <= small.words

def test_further_questions_do_not_move_the_generator(small, monkeypatch):
    "The sentences of a store are drawn from one generator: what else can be asked must not change the next draw."
    def draw():
        rng = random.Random(4)
        return [small.sample(f, 'train', rng).question for f in ('who', 'color', 'side', 'shape_color')*9]
    whole = draw()
    for f in ('who', 'color', 'side', 'shape_color'):
        def quiet(w, r, styles, old=FAMILIES[f].draw):
            d = old(w, r, styles); yield next(d)
            yield {k: v for k, v in next(d).items() if k != 'more'}
        monkeypatch.setitem(FAMILIES, f, replace(FAMILIES[f], draw=quiet))
    assert draw() == whole and not small.sample('who', 'train', 1).more

def test_cells_show_what_covers_them():
    item = lambda name, x, y, scale: dict(thing=name, style='noto', x=x, y=y, scale=scale)
    whole, corner = item('cat', .5, .5, 1.), item('dog', .875, .875, .25)
    assert cover(dict(items=[whole]), 3, 2) == [whole]*6
    assert cover(dict(items=[corner]), 4, 4) == [None]*15 + [corner]
    assert cover(dict(items=[item('cat', .5, .5, .05)]), 1, 1)[0]['thing'] == 'cat'  # a speck lies somewhere too
    half = item('cat', .25, .5, .5)
    assert [c and c['thing'] for c in cover(dict(items=[half, corner]), 2, 2)] == ['cat', None, 'cat', 'dog']

@pytest.mark.parametrize('motion', MOTIONS)
def test_a_moment_of_a_clip_is_the_frame_of_that_moment(motion):
    spec = dict(background=[250, 250, 250], thing='cat', style='noto', motion=motion, x=.5, y=.5, scale=.4, onset=2)
    for t in range(4):
        moment = clip_moment(spec, t)
        assert np.array_equal(render_picture(moment, 56), render_clip(spec)[t])
        assert any(cover(moment, 2, 2)) == bool(moment['items'])
