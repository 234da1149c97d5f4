"""Training steps on text: our loop on batches by length and on packed rows against transformers' Trainer with its padding collator.
Both sides go once over the same rows in as many steps, with the same model, the same AdamW and the same clipping. And the same
steps of stage 1.2 with memory kept between them and given back."""
import copy, os, tempfile
from dataclasses import dataclass

from omni_lite.bench import Case, bench, one_thread

__all__ = ['MIX', 'by_length', 'epoch', 'by_trainer', 'row_loss']

MIX = dict(corpus=.15, text=.35, turns=.3, ahead=.15, owners=.05)  # of the stage that teaches language
ROWS, TOKENS, LENGTH = 160, 1024, 128  # of an epoch; positions of a batch; positions of a packed row

def by_length(
    rows:list, tokens:int=TOKENS, # of Row; padded positions per batch
) -> list: # lists of Row
    "Rows sorted by length and cut into batches."
    groups = [[]]
    for r in sorted(rows, key=len):
        if groups[-1] and len(r) * (len(groups[-1]) + 1) > tokens: groups.append([])
        groups[-1].append(r)
    return groups

def in_rows(
    rows:list, length:int=LENGTH, tokens:int=TOKENS, # of Row; of a packed row; positions per batch
) -> list: # lists of packed rows
    "Rows packed to a length and cut into batches."
    from omni_lite.data.mixture import pack
    packed, n = pack(rows, length), tokens//length
    return [packed[i:i+n] for i in range(0, len(packed), n)]

def adamw(
    model:'nn.Module', # what to train
) -> 'Optimizer':
    "The optimiser of both sides."
    import torch
    return torch.optim.AdamW(model.parameters(), 1e-4)

def epoch(
    model:'OmniForCausalLM', opt:'Optimizer', batches:'Iterator', # what to train; of its language model; of `collate`
) -> int: # steps
    "Our loop: forward, backward, clip, step."
    import torch
    from omni_lite.train.trainer import LMObjective
    objective = LMObjective(model.train())
    for n, batch in enumerate(batches, 1):
        opt.zero_grad(); objective(batch)['loss'].backward()
        torch.nn.utils.clip_grad_norm_(model.llm.parameters(), 1.)
        opt.step()
    return n

def by_trainer(
    llm:'nn.Module', rows:list, tok:'PreTrainedTokenizerFast', batch:int, # what to train; of Row; pads; rows of a batch
) -> 'Trainer': # ready to train one epoch
    "The same by transformers' Trainer."
    from transformers import DataCollatorForSeq2Seq, PrinterCallback, Trainer, TrainingArguments
    data = [dict(input_ids=r.ids.tolist(), labels=r.labels.tolist()) for r in rows]
    args = TrainingArguments(tempfile.gettempdir(), per_device_train_batch_size=batch, num_train_epochs=1, use_cpu=True,
        learning_rate=1e-4, lr_scheduler_type='constant', max_grad_norm=1., save_strategy='no', logging_strategy='no',
        report_to='none', disable_tqdm=True)
    trainer = Trainer(llm, args, DataCollatorForSeq2Seq(tok, label_pad_token_id=-100), data, optimizers=(adamw(llm), None))
    trainer.remove_callback(PrinterCallback)
    return trainer

def row_loss(
    model:'OmniForCausalLM', batches:list, # in eval mode or not, it has no dropout; of `collate`
) -> float: # nats per token
    "Text loss over all rows, by tokens."
    import torch
    total = count = 0
    with torch.no_grad():
        for b in batches:
            n = int((b['labels'][:, 1:] >= 0).sum())
            total, count = total + n*model.losses(b)['text'].item(), count + n
    return total / count

@dataclass(frozen=True)
class TrainCase(Case):
    "Says how many tokens, without padding, are trained on in a second."
    tokens:int = 0 # of an epoch
    fills:tuple = () # of ours and of the anchor

    def extra(self, row):
        rate = lambda k: round(1e3*self.tokens/row[k])
        return dict(tokens_per_s=rate('ours'), anchor_tokens_per_s=rate('anchor'), fill=self.fills[0], anchor_fill=self.fills[1])

def memory_case(
    proc:'OmniProcessor', world:'World', steps:int=2, # of nano; facts; of a stretch
) -> Case:
    "Steps on pictures and text, on all threads, with freed memory kept or given back."
    import torch
    from omni_lite.omni.model import OmniForCausalLM
    from omni_lite.train.stages import recipe
    from omni_lite.train.trainer import StageRun, Workshop, keep_memory
    stage = next(s for s in recipe() if s.name == '1.2')
    run = StageRun(Workshop(OmniForCausalLM(proc.cfg), proc, world, None, progress=False, tokens=640), stage, steps=10**6)
    def go(on):
        keep_memory(on); t = torch.get_num_threads(); torch.set_num_threads(os.cpu_count())
        losses = [run.one_step()['loss'] for _ in range(steps)]
        torch.set_num_threads(t)
        return losses
    return Case('nano, stage 1.2, all threads, memory kept', lambda: go(True), lambda: go(False), lambda a, b: len(a) == len(b))

@bench('train', 'one epoch of text rows on nano', "transformers' Trainer with its padding collator; memory given back after each step")
def cases() -> list: # of Case
    "Batches by length and packed rows, one thread; memory kept between steps."
    import torch
    from omni_lite.benches.data import parts
    from omni_lite.data.mixture import Mixture, collate, collate_packed
    from omni_lite.omni.model import OmniForCausalLM
    torch.manual_seed(0)
    world, proc, tasks = parts()
    mix = Mixture(tasks, MIX); rows = [mix.draw() for _ in range(ROWS)]
    model, tokens = OmniForCausalLM(proc.cfg), sum(map(len, rows))
    opt, other = adamw(model.llm), copy.deepcopy(model.llm)
    make = {'by length': lambda: [collate(g) for g in by_length(rows)],
            'packed': lambda: [collate_packed(g, LENGTH) for g in in_rows(rows)]}
    size = lambda bs: sum(b['input_ids'].numel() for b in bs)
    out = []
    for name, f in make.items():
        n = -(-ROWS // len(f()))  # as many steps
        padded = lambda n=n: [collate(rows[i:i+n]) for i in range(0, ROWS, n)]
        trainer = by_trainer(other, rows, proc.tok, n)
        agree = lambda a, b, f=f, padded=padded: abs(row_loss(model, f()) - row_loss(model, padded())) < 1e-4
        out.append(TrainCase(f'nano, {name}, one thread', one_thread(lambda f=f: epoch(model, opt, f()), True),
                             one_thread(trainer.train, True), agree, tokens,
                             (round(tokens/size(f()), 3), round(tokens/size(padded()), 3))))
    return [*out, memory_case(proc, world)]
