"""lm-eval's own tasks, asked of an omni model: its text side as a language model that lm-eval can question.

Needs lm-eval (the extra `eval`). Its stock tasks download their questions; a folder of task files (YAML) needs no network."""
import hashlib, math
from pathlib import Path

from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
import torch
from tqdm.auto import tqdm

from omni_lite.evaluate.runners import Examinee, Runner, head_of, likelihoods, result
from omni_lite.omni.decoder import decoder_for
from omni_lite.omni.model import OmniForCausalLM
from omni_lite.omni.processor import OmniProcessor
from omni_lite.text import encode_text

__all__ = ['OmniLM', 'run_task']

class OmniLM(TemplateLM):
    "An omni model as lm-eval asks language models: plain text, no chat, greedy."
    def __init__(self,
        model:OmniForCausalLM, proc:OmniProcessor, # in eval mode; its processor
        batch:int=8, # rows at a time
    ):
        super().__init__()
        self.m, self.new, self.tokenizer, self.batch, self._device = model, proc.builder, proc.tok, batch, model.device

    @property
    def eot_token_id(self) -> int: return self.tokenizer.eos_token_id
    @property
    def max_length(self) -> int: return self.m.llm.config.max_position_embeddings
    @property
    def tokenizer_name(self) -> str: return 'omni_lite'

    def tok_encode(self, string, add_special_tokens=None, **kw): return encode_text(self.tokenizer, string)

    def _loglikelihood_tokens(self, requests, disable_tqdm=False, **kw):
        "Of (text, token ids read, token ids that may follow), as `TemplateLM` cuts them."
        rows = [self.new.clear().add(read[-(self.max_length + 1 - len(end)):]).done() for _, read, end in requests]
        got, ends, n = [], [end for *_, end in requests], 32*self.batch
        for i in tqdm(range(0, len(rows), n), desc='likelihoods', disable=disable_tqdm):
            got += likelihoods(self.m, rows[i:i + n], ends[i:i + n], self.batch)
        for (text, *_), one in zip(requests, got):
            if text is not None: self.cache_hook.add_partial('loglikelihood', text, one)
        return got

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        "Of whole texts, in windows as long as the model can hold."
        out = []
        for text, in tqdm([r.args for r in requests], desc='texts', disable=disable_tqdm):
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            pairs = [(None, *make_disjoint_window(w)) for w in windows]
            out.append(sum(p for p, _ in self._loglikelihood_tokens(pairs, disable_tqdm=True)))
            self.cache_hook.add_partial('loglikelihood_rolling', (text,), out[-1])
        return out

    @torch.no_grad()
    def _write(self, ids, stops, most):
        "Greedy text behind token ids, up to one of the stops."
        decoder, out, llm = decoder_for(self.m.llm), [], self.m.llm
        while len(out) < most:
            h = decoder.step(llm.get_input_embeddings()(torch.tensor([out[-1:] or ids], device=self.device)))
            out.append(int(llm.lm_head(h).argmax()))
            if any(s in self.tokenizer.decode(out) for s in stops): break
        return postprocess_generated_text(self.tokenizer.decode(out, skip_special_tokens=True), stops, None)

    def generate_until(self, requests, disable_tqdm=False):
        "Greedy answers; a task that wants sampling is refused."
        out, eos = [], self.tokenizer.decode([self.eot_token_id])
        for text, kw in tqdm([r.args for r in requests], desc='answers', disable=disable_tqdm):
            how = normalize_gen_kwargs(kw, 256)
            if how.get('do_sample'): raise ValueError('this task draws its answers at random and the adapter is greedy: '
                                                      'set do_sample to false in its generation_kwargs')
            stops, most = handle_stop_sequences(how['until'], eos), how['max_gen_toks']
            if most >= self.max_length: raise ValueError(f'the task asks for {most} tokens and this model holds '
                                                         f'{self.max_length}: set max_gen_toks in its generation_kwargs')
            out.append(self._write(self.tok_encode(text)[most - self.max_length:], stops, most))
            self.cache_hook.add_partial('generate_until', (text, kw), out[-1])
        return out

# ---- a task as one of our results

NATS = dict(word_perplexity='nats_per_word', byte_perplexity='nats_per_byte')  # whose exp is the perplexity

def _scores(sample):
    "Of one question: a share, or the sums of which a perplexity is made."
    found = {m: sample[m] for m in sample['metrics'] if m in sample}
    shares = {m: [float(v), 1] for m, v in found.items() if isinstance(v, (int, float)) and math.isfinite(v)}
    return shares | {NATS[m]: [-v[0], v[1]] for m, v in found.items() if m in NATS}

def _row(task, s):
    said = s['filtered_resps'][0] if len(s['filtered_resps']) == 1 else s['filtered_resps']
    name, read = f"{task}/{s['doc_id']}", s['arguments'][0][0]
    return dict(id=name, group=name, question=read, truth=[str(s['target'])], answer=str(said), scores=_scores(s))

def _manager(task, tasks):
    "The index of a folder of task files, or of all that lm-eval ships, which takes long to read."
    for kw in [dict(include_path=str(tasks), include_defaults=False)]*bool(tasks) + [dict(include_path=str(tasks) if tasks else None)]:
        if (manager := TaskManager(**kw)).match_tasks([task]): return manager
    raise ValueError(f'lm-eval knows no task {task}: `lm-eval ls tasks` lists its own, --data adds a folder of task files')

def run_task(
    task:str, x:Examinee, folder:Path, out:Path, # name of lm-eval's; who answers; of the model; the result's file
    tasks:Path|None=None, limit:int|None=None, # folder with task files of one's own; questions at most, of each task
    metric:str|None=None, # the main score; None: the task's first
) -> dict: # as `run` gives it, and lm-eval's own table under 'lm_eval'
    "Run a task; answers already had are taken from a cache beside the result."
    manager = _manager(task, tasks)
    head = head_of(f'lm-eval-{task}', folder, [], x.seed)
    key = hashlib.sha256(''.join(head['weights'].values()).encode()).hexdigest()[:12]
    out.parent.mkdir(parents=True, exist_ok=True)
    try: got = simple_evaluate(OmniLM(x.m, x.proc), tasks=[task], task_manager=manager, limit=limit, log_samples=True,
                               bootstrap_iters=0, use_cache=str(out.with_suffix(f'.{key}')))
    except (OSError, ConnectionError) as e:
        raise FileNotFoundError(f'the questions of {task} are not here and the hub cannot be had ({type(e).__name__}): '
                                'connect once, or give task files with local data by --data') from None
    rows = [_row(name, s) for name, some in got['samples'].items() for s in some]
    head['data'] = hashlib.sha256(''.join(s['doc_hash'] for some in got['samples'].values() for s in some).encode()).hexdigest()
    runner = Runner(f'lm-eval-{task}', f'{task} of lm-eval', None, None, metric or next(iter(rows[0]['scores'])))
    return result(runner, rows, head, folder) | dict(lm_eval=got['results'])
