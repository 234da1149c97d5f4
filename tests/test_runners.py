"""Evaluations: scores equal to those of lm-eval, jiwer and OmniBench's script; a loader for each layout; runs that go on."""
import json, re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from omni_lite.config import preset
from omni_lite.data.world import World
from omni_lite.evaluate.leaderboard import QUOTED, boards, markdown, results, write_leaderboard
from omni_lite.evaluate.judge import bootstrap
from omni_lite.evaluate.runners import (OMNI, Case, Examinee, Runner, agreement, by_letter, by_likelihood, by_text,
                                        dictation, errors, free, likelihoods, omnibench, omnibench_pick, omnibench_prompt,
                                        omnibench_scores, open_picture, pair_ids, pick, read_aloud, run, spoken, then, total,
                                        whisper_normal)
from omni_lite.evaluate.sets import (OPEN_AUDIO, RUNNERS, asked_of_files, folder_of, mmbench, medical, omnibench_cases,
                                     open_audio, recordings, right_option, sentences, text_choice)
from omni_lite.eval_cli import add_commands, evaluate_set
from omni_lite.fetch import fetched
from omni_lite.omni.model import OmniForCausalLM
from omni_lite.omni.processor import OmniProcessor
from omni_lite.text import encode_text, train_tokenizer

TINY = Path(__file__).resolve().parent/'fixtures'

@pytest.fixture(scope='module')
def parts():
    torch.manual_seed(0); torch.set_num_threads(1)
    tok = train_tokenizer(l for l, _ in zip(World('small').corpus(0), range(500)))
    cfg = preset('tiny'); cfg = replace(cfg, llm=replace(cfg.llm, vocab_size=len(tok), max_positions=512),
                                        sampling=replace(cfg.sampling, max_text=4, max_text_only=4))
    m = OmniForCausalLM(cfg).eval()
    m.head.heads[0].bias.data[-1] = -9.  # or an untrained head stops at once
    m.vocoder.pitch_net.out.bias.data[::65] = 5.
    return m, OmniProcessor(tok, cfg)

@pytest.fixture(scope='module')
def folder(parts, tmp_path_factory):
    at = tmp_path_factory.mktemp('model')
    parts[0].save_pretrained(at, tok=parts[1].tok)
    return at

class Scripted(Examinee):
    "Answers from a list, and a voice that says them."
    def __init__(self, *said, heard=None, mos=None):
        super().__init__(self, None, (lambda wav, rate: heard) if heard is not None else None, mos)
        self.said, self.asked = list(said), []
    def answer(self, messages, speak=False):
        self.asked.append(messages)
        return self.said.pop(0), np.ones(24000, np.float32) if speak else None
    def transcribe(self, audio, proc, seed=0): self.asked.append(audio); return self.said.pop(0)
    def say(self, text, proc, seed=0): self.asked.append(text); return np.ones(12000, np.float32), {}

# ---- the same score as lm-eval

@pytest.fixture(scope='module')
def tasks(tmp_path_factory):
    "Three tasks of lm-eval with local data: a choice, a text to be predicted, an answer to be written."
    at = tmp_path_factory.mktemp('tasks')
    rows = [json.loads(l) for l in (TINY/'text_choice/questions.jsonl').read_text().splitlines()]
    text = dict(text='the duck sees a red ball. the cow sees a cat and a dog. ' * 40)
    for name, some in (('choice', rows), ('text', [text, dict(text='a cat.')])):
        (at/f'{name}.jsonl').write_text('\n'.join(map(json.dumps, some)))
    data = lambda name: (f'dataset_path: json\ndataset_kwargs:\n  cache_dir: {at}/cache\n  data_files:\n    test: {at}/{name}.jsonl\n'
                         'test_split: test\n')
    ask = 'doc_to_text: "Question: {{question}}\\nAnswer:"\n'
    (at/'tiny_choice.yaml').write_text('task: tiny_choice\noutput_type: multiple_choice\n' + data('choice') + ask +
        'doc_to_choice: "{{choices}}"\ndoc_to_target: answer\nmetric_list:\n  - metric: acc\n  - metric: acc_norm\n')
    (at/'tiny_text.yaml').write_text('task: tiny_text\noutput_type: loglikelihood_rolling\n' + data('text') +
        'doc_to_text: ""\ndoc_to_target: "{{text}}"\nmetric_list:\n  - metric: word_perplexity\n')
    (at/'tiny_write.yaml').write_text('task: tiny_write\noutput_type: generate_until\n' + data('choice') + ask +
        'doc_to_target: "{{choices[answer]}}"\ngeneration_kwargs:\n  until: ["."]\n  max_gen_toks: 12\n  do_sample: false\n'
        'metric_list:\n  - metric: exact_match\n')
    return at

@pytest.fixture(scope='module')
def both(parts, tasks):
    "The tasks, asked through the adapter and through lm-eval's own class for the same weights."
    lm_eval = pytest.importorskip('lm_eval')
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from omni_lite.evaluate.lm_eval_adapter import OmniLM
    m, proc = parts
    ask = lambda lm: lm_eval.simple_evaluate(lm, tasks=['tiny_choice', 'tiny_text', 'tiny_write'], log_samples=True, bootstrap_iters=0,
                                             task_manager=TaskManager(include_path=str(tasks), include_defaults=False))
    return ask(OmniLM(m, proc)), ask(HFLM(pretrained=m.llm, tokenizer=proc.tok, batch_size=3))

@pytest.mark.parametrize('task, metric', [('tiny_choice', 'acc'), ('tiny_choice', 'acc_norm'), ('tiny_text', 'word_perplexity'),
                                          ('tiny_write', 'exact_match')])
def test_lm_eval_gives_the_same_score(both, task, metric):
    ours, theirs = (b['results'][task][f'{metric},none'] for b in both)
    assert ours == pytest.approx(theirs, rel=1e-4)

def test_lm_eval_gets_the_same_answers(both):
    for task in ('tiny_choice', 'tiny_text', 'tiny_write'):
        for a, b in zip(*(x['samples'][task] for x in both), strict=True):
            a, b = a['resps'], b['resps']
            if task == 'tiny_write': assert a == b
            else: np.testing.assert_allclose(np.array(a, float), np.array(b, float), rtol=1e-4, atol=1e-4)

def test_the_local_runner_gives_the_score_of_lm_eval(both, parts):
    rows = [dict(group=c.id, **by_text(Examinee(*parts), c)) for c in text_choice(TINY/'text_choice')]
    theirs = both[1]
    for m in ('acc', 'acc_norm'): assert total(rows, m)['value'] == pytest.approx(theirs['results']['tiny_choice'][f'{m},none'])
    for row, s in zip(rows, theirs['samples']['tiny_choice'], strict=True):
        np.testing.assert_allclose(row['logp'], [r[0][0] for r in s['resps']], rtol=1e-4, atol=1e-4)

def test_a_task_becomes_a_result_and_is_not_asked_twice(both, parts, folder, tasks, tmp_path, monkeypatch):
    from omni_lite.evaluate import lm_eval_adapter as adapter
    first = adapter.run_task('tiny_choice', Examinee(*parts), folder, tmp_path/'r.json', tasks)
    assert first['score'] == both[1]['results']['tiny_choice']['acc,none'] and first['n'] == 5
    monkeypatch.setattr(adapter, 'likelihoods', None)  # the cache answers
    assert adapter.run_task('tiny_choice', Examinee(*parts), folder, tmp_path/'r.json', tasks)['rows'] == first['rows']

def test_perplexity_is_a_ratio_of_sums(both, parts, folder, tasks, tmp_path):
    from omni_lite.evaluate.lm_eval_adapter import run_task
    got = run_task('tiny_text', Examinee(*parts), folder, tmp_path/'r.json', tasks)
    assert np.exp(got['score']) == pytest.approx(both[1]['results']['tiny_text']['word_perplexity,none'], rel=1e-4)

def test_lm_eval_refuses_in_a_sentence(parts, folder, tasks, tmp_path, monkeypatch):
    pytest.importorskip('lm_eval')
    from lm_eval.api.instance import Instance
    from omni_lite.evaluate import lm_eval_adapter as adapter
    from omni_lite.evaluate.lm_eval_adapter import OmniLM, TaskManager, run_task
    monkeypatch.setattr(adapter, 'TaskManager', lambda include_path, **kw: TaskManager(include_path=include_path, include_defaults=False))
    with pytest.raises(ValueError, match='knows no task nothing_of_the_kind'):
        run_task('nothing_of_the_kind', Examinee(*parts), folder, tmp_path/'r.json', tasks)
    ask = lambda **kw: OmniLM(*parts).generate_until([Instance('generate_until', {}, ('a', kw), 0)])
    with pytest.raises(ValueError, match='greedy'): ask(do_sample=True, temperature=1.)
    with pytest.raises(ValueError, match='max_gen_toks'): ask(max_gen_toks=5000)

# ---- the same score as jiwer

PAIRS = [("I won't buy twenty two cats.", 'i will not buy 22 cat'), ('A red ball', 'the red tall ball'), ('Dr. Who, um, left', ''),
         ('one thousand dollars', '$1000'), ('go', 'go and go')]

def test_errors_are_jiwers():
    import jiwer
    norm, rows = whisper_normal(), [dict(group=str(i), scores=errors(*p)) for i, p in enumerate(PAIRS)]
    truth, heard = zip(*((norm(a), norm(b)) for a, b in PAIRS))
    assert total(rows, 'wer')['value'] == pytest.approx(jiwer.wer(list(truth), list(heard)))
    assert total(rows, 'cer')['value'] == pytest.approx(jiwer.cer(list(truth), list(heard)))

def test_words_that_vanish_are_named():
    with pytest.raises(ValueError, match='no words left'): errors('um', 'a')

def test_other_languages_keep_their_numbers(): assert whisper_normal(False)('Zwei, 2!').split() == ['zwei', '2']

# ---- the same score as OmniBench

ANSWERS = json.loads((TINY/'omnibench/answers.json').read_text())
OPTIONS = {c.id: c.options for c in omnibench_cases(TINY/'omnibench')}
letter = lambda i: 'N/A' if i is None else 'ABCD'[i]

@pytest.mark.parametrize('a', ANSWERS, ids=lambda a: f"{a['index']}:{a['answer'][:24]}")
def test_omnibench_reads_as_its_script(a):
    assert letter(omnibench_pick(a['answer'], OPTIONS[str(a['index'])])) == a['read']

def test_omnibench_scores_as_its_script():
    cs = {c.id: c for c in omnibench_cases(TINY/'omnibench')}
    some = [a for a in ANSWERS if a['truth'] != 'N/A']  # where its script finds no truth, it stops
    rows = [dict(group=str(i), scores=omnibench_scores(a['answer'], cs[str(a['index'])])) for i, a in enumerate(some)]
    assert total(rows, 'acc')['value'] == np.mean([a['read'] == a['truth'] for a in some])
    assert total(rows, 'acc')['value'] != total(rows, 'own')['value']  # its rule and ours differ on these

def test_omnibench_truth_without_a_letter_counts_by_place():
    bell = next(c for c in omnibench_cases(TINY/'omnibench') if c.id == '2')
    assert omnibench_scores('C', bell)['acc'] == [1, 1] and omnibench_scores('A', bell)['acc'] == [0, 1]

@pytest.mark.parametrize('eye, ear', list(OMNI))
def test_omnibench_shows_what_its_setting_says(eye, ear):
    case, x = omnibench_cases(TINY/'omnibench')[0], Scripted('B')
    assert omnibench(eye, ear)(x, case)['scores'] == dict(acc=[1, 1], own=[1, 1])
    kinds = {p['type'] for p in x.asked[0][0]['content']}
    text = omnibench_prompt(case, eye, ear)
    assert kinds - {'text'} == {eye, ear} & {'image', 'audio'}
    assert ('Image Content: The image' in text, 'Audio Content: A: sound' in text) == (eye == 'caption', ear == 'transcript')
    assert 'B. He is solving a crossword puzzle.' in text

# ---- an option out of free text

@pytest.mark.parametrize('said, want', [
    ('B', 1), ('b', 1), (' (b) ', 1), ('B.', 1), ('(B) a dog', 1), ('The answer is B.', 1), ('Answer: C', 2), ('B, surely', 1),
    ('B. not A.', 1), ('A dog barks', 1), ('a DOG!', 1), ('NBA stars', None), ('BIRD', None), ("It's a cat", 0), ('', None),
    ('a big dog runs', 3), ('I see nothing', None), ('D', 3), ('E', None)])
def test_pick(said, want): assert pick(said, ('cat', 'dog', 'red ball', 'big dog')) == want

def test_letters_beyond_the_options_are_not_letters(): assert pick('C', ('yes', 'no')) is None

def test_options_without_latin_letters_are_not_found_everywhere(): assert pick('anything', ('猫', '狗')) is None

# ---- likelihoods

def test_likelihoods_do_not_depend_on_the_batch(parts):
    m, proc = parts
    rows = [proc.apply_chat_template([dict(role='user', content=t)]) for t in ('a cat?', 'a dog sees a red ball. where?', 'up')]
    ends = [encode_text(proc.tok, t) for t in ('yes.', 'in the big red house.', 'no.')]
    one, more = likelihoods(m, rows, ends, 1), likelihoods(m, rows, ends, 3)
    np.testing.assert_allclose([p for p, _ in one], [p for p, _ in more], rtol=1e-4)

def test_likelihood_is_the_sum_over_the_end(parts):
    m, proc = parts
    ids, end = pair_ids(proc.tok, 'the cat ', 'sees a dog.')
    assert ids + end == encode_text(proc.tok, 'the cat sees a dog.')
    logp = m.llm(torch.tensor([ids + end])).logits[0].log_softmax(-1)
    want = sum(logp[len(ids) + i - 1, t].item() for i, t in enumerate(end))
    (got, _), = likelihoods(m, [proc.builder.clear().add(ids).done()], [end])
    assert got == pytest.approx(want, abs=1e-4)

def test_greedy_end_is_known(parts):
    m, proc = parts
    row = proc.builder.clear().add(encode_text(proc.tok, 'the cat')).done()
    best = int(m.llm(row.ids[None]).logits[0, -1].argmax())
    assert [g for _, g in likelihoods(m, [row]*2, [[best], [best ^ 1]])] == [True, False]

def test_pictures_are_part_of_what_is_read(parts):
    m, proc = parts
    red, blue = ([c for c in mmbench(TINY/'mmbench') if c.id == i][0] for i in ('7', '8'))
    a, b = (by_likelihood(Examinee(m, proc), replace(c, question='what color?', group='')) for c in (red, blue))
    assert a['logp'] != b['logp'] and set(a['scores']) == {'acc', 'acc_norm'}

def test_then_keeps_the_row(parts):
    row = parts[1].apply_chat_template([dict(role='user', content='a cat?')])
    longer = then(row, [5, 6])
    assert longer.ids.tolist() == [*row.ids.tolist(), 5, 6] and len(longer.codes) == len(row) + 2 and (longer.codes[-2:] == -1).all()
    assert torch.equal(then(row, []).ids, row.ids)

# ---- intervals

def test_bootstrap_covers_and_repeats():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(100):
        x = (rng.random(80) < .6).astype(int)
        low, high = bootstrap(x, np.ones(80), 200); hits += low <= .6 <= high
    assert 85 <= hits <= 100
    assert bootstrap([1, 0, 1], [1, 1, 1]) == bootstrap([1, 0, 1], [1, 1, 1])

def test_rotations_count_together():
    row = lambda group, right: dict(group=group, scores=dict(acc=[right, 1]))
    got = total([row('a', 1), row('a', 1), row('b', 1), row('b', 0)], 'acc')
    assert (got['value'], got['n']) == (.5, 2)

# ---- loaders

def test_text_choice(): assert [c.answers[0] for c in text_choice(TINY/'text_choice')] == ['down', 'the dog', 'three', 'a hammer', 'the sky']

@pytest.mark.parametrize('name, ids, words', [('librispeech', ['7-12-0000', '7-12-0001'], 'A DOG RUNS'),
                                              ('manifest', ['a.wav'], 'The cat sees 2 birds.'), ('beside', ['a'], 'a cat.')])
def test_recordings(name, ids, words):
    cs = recordings(TINY/name)
    assert [c.id for c in cs] == ids and cs[-1].answers == (words,) and all(c.audio.is_file() for c in cs)

def test_mmbench_pictures_and_groups():
    a, b, c = mmbench(TINY/'mmbench')
    assert [open_picture(x.image).convert('RGB').getpixel((0, 0)) for x in (a, b, c)] == [(255, 0, 0), (255, 0, 0), (0, 0, 255)]
    assert a.group == b.group != c.group and a.answers == b.answers == ('red',) and c.info['hint'] == 'Look closely.'

def test_questions_about_files():
    a, b = asked_of_files(TINY/'vqa', 'image')
    assert a.answers == ('red', 'dark red') and b.answers == ('no',) and a.image.is_file()
    c, d = asked_of_files(TINY/'video', 'video')
    assert c.options == ('blue', 'red') and d.options == () and c.video.is_file()

def test_omnibench_fields():
    c = omnibench_cases(TINY/'omnibench')[0]
    assert c.info == dict(caption='The image depicts scene 0.', transcript='A: sound 0.', kind='speech')
    assert c.image.is_file() and c.audio.is_file() and c.answers[0] in c.options

@pytest.mark.parametrize('name, answers', [('llama_questions', ('Paris',)), ('web_questions', ('William Shakespeare', 'Shakespeare')),
                                           ('trivia_qa', ('mars', 'planet mars', 'the red planet'))])
def test_open_audio(name, answers):
    c, = open_audio(TINY/'openaudiobench', name)
    assert c.answers == answers and c.audio.is_file() and c.question

def test_medical():
    c, = medical(TINY/'openmm')
    assert c.id == 'ACRIMA_0001' and c.answers == ('No, it is not.',) and c.image.is_file()

@pytest.mark.parametrize('answer, options, want', [('B', ('x', 'y'), 'y'), ('B', ('B', 'y'), 'B'), (0, ('1', '0'), '1'), ('0', ('1', '0'), '0'),
                                                   ('1', ('x', 'y'), 'y'), ('Yes.', ('yes', 'no'), 'yes'), ('y', ('y', 'y'), 'y')])
def test_right_option(answer, options, want): assert right_option(answer, options) == want

@pytest.mark.parametrize('break_it, words', [
    (lambda d: (d/'q.jsonl').write_text('{"question": "a?", "choices": ["x", "y"], "answer": "z"}'), 'none of'),
    (lambda d: (d/'q.jsonl').write_text('{"question": "a?", "choices": ["x", "y"]}'), 'has no answer'),
    (lambda d: None, 'holds no')])
def test_broken_sets_are_named(break_it, words, tmp_path):
    break_it(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=words): text_choice(tmp_path)

def test_missing_files_are_named(tmp_path):
    (tmp_path/'q.jsonl').write_text('{"video": "gone.mp4", "question": "a?", "answer": "b"}')
    with pytest.raises(FileNotFoundError, match='gone.mp4 is not there'): asked_of_files(tmp_path, 'video')

def test_a_set_that_is_nowhere(monkeypatch):
    import huggingface_hub
    def none(*a, **k): raise ConnectionError('no network')
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', none)
    with pytest.raises(FileNotFoundError, match=r'm-a-p/OmniBench is not here and the hub cannot be had .* --data'):
        folder_of(None, 'm-a-p/OmniBench')
    with pytest.raises(FileNotFoundError, match='a/b is not here'): folder_of('hub:a/b')
    with pytest.raises(ValueError, match='name a folder'): folder_of(None)

def test_a_set_from_the_hub_is_read_like_a_folder(monkeypatch):
    import huggingface_hub
    asked = []
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', lambda repo, **k: asked.append((repo, k)) or str(TINY/'omnibench'))
    assert len(omnibench_cases(folder_of(None, 'm-a-p/OmniBench'))) == 3 and asked == [('m-a-p/OmniBench', dict(repo_type='dataset'))]

# ---- askers

def test_dictation_counts_words():
    c = recordings(TINY/'librispeech')[0]
    assert dictation(Scripted('the cat sees 2 words'), c)['scores'] == dict(wer=[1, 5], cer=[2, 20])

def test_the_voice_is_heard_by_the_judge():
    lengths = []
    x = Scripted(heard='a dog', mos=lambda truth, wav: lengths.append(len(wav)) or 3.5)
    got = read_aloud(x, Case('1', 'a dog runs.'))
    assert got['heard'] == 'a dog' and got['scores']['wer'] == [1, 3] and got['scores']['mos'] == [3.5, 1]
    assert lengths[0] >= 7.68*24000 and lengths[0] % 12000 == 0  # the sound, repeated
    got = agreement(Scripted('a dog runs.', heard='a dog runs'), Case('1', 'what is it?'))
    assert got['answer'] == 'a dog runs.' and got['scores']['wer'] == [0, 3] and 'mos' not in got['scores']

def test_without_a_judge_the_voice_says_what_is_missing():
    with pytest.raises(FileNotFoundError, match='omni-lite fetch judge'): read_aloud(Scripted(), Case('1', 'a dog.'))

@pytest.mark.fetched
@pytest.mark.skipif(not fetched('judge'), reason='needs the judge')
def test_the_real_judge_hears_silence_as_nothing():
    from omni_lite.evaluate.judge import listen
    x = Scripted(); x.hear, x.say = listen, lambda *a, **k: (np.zeros(24000, np.float32), {})
    assert read_aloud(x, Case('1', 'a dog runs.'))['scores']['wer'] == [3, 3]

@pytest.mark.parametrize('said, right', [('It was written by Shakespeare, of course.', 1), ('Marlowe', 0), ('', 0)])
def test_spoken_answers_name_the_right_one(said, right):
    c, = open_audio(TINY/'openaudiobench', 'web_questions')
    x = Scripted(said)
    assert spoken(x, c)['scores'] == dict(acc=[right, 1]) and [p['type'] for p in x.asked[0][0]['content']] == ['audio']

def test_letters_and_free_answers():
    c = mmbench(TINY/'mmbench')[2]
    x = Scripted('B. blue', 'no')
    assert by_letter(x, c)['scores'] == dict(acc=[1, 1])
    assert x.asked[0][0]['content'][-1]['text'].startswith('Hint: Look closely.\nQuestion: What color is it?\nOptions:\nA. red\nB. blue\n')
    assert free(x, asked_of_files(TINY/'vqa', 'image')[1])['scores'] == dict(acc=[1, 1])

DATA = dict(text='text_choice', image='mmbench', openmm='openmm', omnibench='omnibench', openaudiobench='openaudiobench', asr='librispeech',
            speech='sentences', agreement='sentences', video='video')

@pytest.mark.parametrize('name', list(RUNNERS))
def test_every_runner_asks_a_model(name, parts, folder, tmp_path):
    r = RUNNERS[name]; where = 'vqa' if name == 'image-qa' else DATA[name.split('-')[0]]
    x = Examinee(*parts, hear=lambda wav, rate: 'a dog', mos=lambda truth, wav: 2.)
    cases = r.load(TINY/where)
    got = run(r, x, cases, folder, tmp_path/'r.json', limit=2, progress=False)
    assert got['failed'] == 0 and len(got['rows']) == min(2, len(cases)) and 0 <= got['low'] <= got['score'] <= got['high']
    assert json.loads((tmp_path/'r.json').read_text()) == got

# ---- runs

def lines(n): return [Case(str(i), f'what is {i}?', (str(i),)) for i in range(n)]
COUNT = Runner('count', 'numbers', None, free)

def test_a_stopped_run_goes_on(folder, tmp_path):
    class Stop(Exception): pass
    x = Scripted('0', '1', 'x')
    def ask(x, c):
        if not x.said: raise Stop
        return free(x, c)
    with pytest.raises(Stop): run(replace(COUNT, ask=ask), x, lines(5), folder, tmp_path/'r.json', progress=False)
    assert not (tmp_path/'r.json').exists()
    part = tmp_path/'r.part.jsonl'
    part.write_text(part.read_text() + '{"id": "3", "sco')  # broken off
    x = Scripted('3', '4')
    got = run(COUNT, x, lines(5), folder, tmp_path/'r.json', progress=False)
    assert [r['answer'] for r in got['rows']] == ['0', '1', 'x', '3', '4'] and got['score'] == .8 and len(x.asked) == 2
    assert [p.name for p in tmp_path.iterdir()] == ['r.json']

def test_more_cases_ask_only_the_new_ones(folder, tmp_path):
    run(COUNT, Scripted('0', '1'), lines(5), folder, tmp_path/'r.json', limit=2, progress=False)
    x = Scripted('2', '3', '4')
    assert run(COUNT, x, lines(5), folder, tmp_path/'r.json', progress=False)['n'] == 5
    assert run(COUNT, Scripted(), lines(5), folder, tmp_path/'r.json', limit=3, progress=False)['n'] == 3

@pytest.mark.parametrize('what', ['weights', 'data', 'seed', 'runner'])
def test_rows_of_another_run_are_not_mixed_in(what, folder, tmp_path):
    run(COUNT, Scripted('0'), lines(1), folder, tmp_path/'r.json', progress=False)
    x, cs, r, at = Scripted('0', '1'), lines(1), COUNT, folder
    if what == 'seed': x.seed = 1
    if what == 'data': cs = lines(2)
    if what == 'runner': r = replace(COUNT, name='other')
    if what == 'weights': at = tmp_path/'other'; at.mkdir(); (at/'model.safetensors').write_bytes(b'x')
    with pytest.raises(ValueError, match=f'belongs to other {what}.*--out'): run(r, x, cs, at, tmp_path/'r.json', progress=False)

def test_a_case_that_cannot_be_asked_is_wrong_and_named(parts, folder, tmp_path):
    long = Case('long', 'a cat ' * 600, ('a',))
    got = run(COUNT, Examinee(*parts), [long, *lines(1)], folder, tmp_path/'r.json', progress=False)
    assert got['failed'] == 1 and 'positions' in got['rows'][0]['error'] and got['rows'][0]['scores'] == dict(acc=[0, 1])

def test_a_result_says_what_was_judged(folder, tmp_path):
    import hashlib
    got = run(COUNT, Scripted('0'), lines(1), folder, tmp_path/'r.json', progress=False)
    assert got['weights'] == {n: hashlib.sha256((folder/n).read_bytes()).hexdigest() for n in ('codec.safetensors', 'model.safetensors')}
    assert {'torch', 'transformers', 'python', 'omni_lite', 'date'} <= got['facts'].keys() and got['seed'] == 0

# ---- the leaderboard and the commands

@pytest.fixture
def done(folder, tmp_path):
    "Three results in a folder."
    x = Scripted('B', 'A', 'B')
    run(RUNNERS['image-choice'], x, mmbench(TINY/'mmbench'), folder, tmp_path/'a.json', progress=False)
    run(RUNNERS['asr'], Scripted('the cat sees two birds', 'a <b>'), recordings(TINY/'librispeech'), folder, tmp_path/'b.json', progress=False)
    run(COUNT, Scripted('0'), lines(1), folder, tmp_path/'c.json', progress=False)
    (tmp_path/'other.json').write_text('[1, 2]')
    return tmp_path

def test_ours_and_the_quoted_stand_in_one_table(done, folder):
    some = {b['name']: b for b in boards(results(done))}
    assert set(some) == {'asr', 'count', 'image-choice'} and some['count']['rows'][0][0].startswith('**')
    ours = f'**{folder.name}**'
    assert some['image-choice']['rows'][-1][0].startswith(ours) and some['image-choice']['rows'][0][0] == 'Baichuan-Omni-1.5'
    assert some['asr']['rows'][0][0] == 'Kimi-Audio' and some['asr']['rows'][-1][0].startswith(ours)  # few errors first

def test_every_quoted_row_has_its_source(done):
    text = markdown(boards(results(done)))
    assert all(source and name for name, source, _ in QUOTED.values()) and QUOTED.keys() <= RUNNERS.keys()
    assert text.count('quoted, MMBench-EN') == len(QUOTED['image-choice'][2]) and QUOTED['image-choice'][1] in text

def test_the_page_needs_no_network(done, folder):
    page = write_leaderboard(done, done/'page').read_text()
    assert not re.search(r'(?:src|href)=', page) and '<script' not in page and folder.name in page and (done/'page'/'leaderboard.md').is_file()

def test_an_empty_folder_has_no_leaderboard(tmp_path):
    with pytest.raises(FileNotFoundError, match='holds no result'): results(tmp_path)

@pytest.fixture
def cli():
    app = typer.Typer(); add_commands(app)
    return lambda *args: CliRunner().invoke(app, [str(a) for a in args])

def test_the_list_has_every_name(cli):
    got = cli('eval')
    assert got.exit_code == 0 and all(f'{n} ' in got.output for n in (*RUNNERS, 'lm-eval'))

def test_eval_and_leaderboard_from_the_command_line(cli, folder, tmp_path):
    got = cli('eval', 'text-choice', '--model', folder, '--data', TINY/'text_choice', '--limit', 3, '--out', tmp_path/'r'/'t.json')
    assert got.exit_code == 0 and 'acc_norm' in got.output and '3 cases' in got.output, got.output
    got = cli('leaderboard', tmp_path/'r')
    assert got.exit_code == 0 and (tmp_path/'r'/'leaderboard.html').is_file(), got.output

@pytest.mark.parametrize('args, words', [
    (('no-such-name',), 'there is no evaluation'), (('text-choice',), 'name a folder with --data'), (('lm-eval',), 'needs the name of a task'),
    (('text-choice', '--data', 'nowhere'), 'does not exist'), (('text-choice', '--model', 'nowhere', '--data', TINY/'text_choice'), 'no checkpoint')])
def test_mistakes_end_in_a_sentence(cli, args, words):
    e = cli('eval', *args).exception
    assert isinstance(e, (ValueError, FileNotFoundError)) and words in str(e)
