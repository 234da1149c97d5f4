"""Writing text, one token at a time: our decoder against transformers' `generate`, on one and the same model object with random
weights, greedily, so that both must write the same tokens."""
from omni_lite.bench import Case, bench, one_thread

__all__ = ['greedy', 'by_transformers', 'smol']

def greedy(
    llm:'nn.Module', # a causal LM of transformers
    ids:'Tensor', new:int=64, # (1, T) prompt; tokens to write
) -> list: # ids of the new tokens
    "The likeliest token, again and again, by our decoder."
    import torch
    from omni_lite.omni.decoder import decoder_for
    table, d, out = llm.get_input_embeddings(), decoder_for(llm), []
    for _ in range(new):
        ids = llm.lm_head(d.step(table(ids))).argmax(-1)[None]
        out.append(int(ids))
    return out

def by_transformers(
    llm:'nn.Module', ids:'Tensor', new:int=64, # as for `greedy`
) -> list: # ids of the new tokens
    "The same by `generate`."
    out = llm.generate(ids, attention_mask=ids*0 + 1, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)
    return out[0, ids.shape[1]:].tolist()

def smol() -> 'nn.Module': # random weights
    "A Llama of SmolLM2-135M's published sizes."
    from transformers import LlamaConfig, LlamaForCausalLM
    return LlamaForCausalLM(LlamaConfig(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True, bos_token_id=0,
        eos_token_id=0))

@bench('decode', 'text, one token at a time', "transformers' generate on the same model")
def cases() -> list: # of Case
    "Nano and SmolLM2-135M, 64 new tokens behind prompts of 32 and 512."
    import torch
    from omni_lite.config import preset
    from omni_lite.omni.model import build_llm
    torch.manual_seed(0)
    out, models = [], {'nano': build_llm(preset('nano').llm).eval(), 'SmolLM2-135M': smol().eval()}
    for name, llm in models.items():
        llm.generation_config.eos_token_id = None  # random weights may draw the end
        for n in (32, 512) if name == 'nano' else (32,):
            ids, new = torch.randint(20, 500, (1, n)), 64 if name == 'nano' else 16
            pair = [lambda f=f, llm=llm, ids=ids, new=new: f(llm, ids, new) for f in (greedy, by_transformers)]
            out.append(Case(f'{name}, {new} tokens behind {n}, one thread', *map(one_thread, pair), lambda a, b: a == b))
            if n == 32: out.append(Case(f'{name}, {new} tokens behind {n}, all threads', *map(torch.no_grad(), pair),
                                        lambda a, b: a == b))
    return out
