"""Language models as transformers builds them: cache on, outputs of its own types, nothing wrapped."""

from typing import Any

import pytest
import torch

import auxin
from auxin.methods import Net2Net

transformers = pytest.importorskip("transformers")

SMALL = {"vocab_size": 50, "hidden_size": 60, "num_hidden_layers": 1, "num_attention_heads": 6, "intermediate_size": 23}
GROUPED = {**SMALL, "num_key_value_heads": 3}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SEQUENCES = {
    "vocab_size": 50, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 23, "decoder_ffn_dim": 23, "max_position_embeddings": 32,
    "decoder_start_token_id": 2,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT2LMHeadModel": ("GPT2Config", {"vocab_size": 50, "n_embd": 24, "n_layer": 1, "n_head": 4}),
    "LlamaForCausalLM": ("LlamaConfig", GROUPED),
    "Qwen3ForCausalLM": ("Qwen3Config", {**GROUPED, "head_dim": 8}),
    "Gemma2ForCausalLM": ("Gemma2Config", {**GROUPED, "head_dim": 8}),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", SMALL),
    "BloomForCausalLM": ("BloomConfig", {"vocab_size": 50, "hidden_size": 24, "n_layer": 1, "n_head": 3}),
    "MambaForCausalLM": (
        "MambaConfig",
        {"vocab_size": 50, "hidden_size": 20, "num_hidden_layers": 1, "state_size": 5, "time_step_rank": 3},
    ),
    "T5ForConditionalGeneration": (
        "T5Config",
        {"vocab_size": 50, "d_model": 16, "d_kv": 7, "d_ff": 23, "num_layers": 1, "num_heads": 3},
    ),
    "BartForConditionalGeneration": ("BartConfig", SEQUENCES),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_language_model_with_its_cache_grows_wherever_it_says_it_can(name: str) -> None:
    config, settings = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, config)(**SPECIAL, **settings)).double().eval()
    assert model.config.use_cache
    ids = torch.randint(3, 50, (2, 7))
    inputs = {"input_ids": ids, "decoder_input_ids": ids} if model.config.is_encoder_decoder else {"input_ids": ids}
    graph = auxin.trace(model, inputs)
    assert not model._forward_hooks
    assert graph.growable()
    with torch.no_grad():
        before = model(**inputs).logits
    for group in graph.growable():
        event = auxin.widen(model, group, 2, graph=graph, method=Net2Net(asymmetry=0.5))
        assert event.changes[0].after - event.changes[0].before == 2
    with torch.no_grad():
        after = model(**inputs).logits
    assert (after - before).abs().max() < 1e-10 * max(1.0, float(before.abs().max()))


def test_the_caches_of_a_model_that_grew_still_generate() -> None:
    """Generating token by token with the cache gives what whole forwards give."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SPECIAL, **GROUPED)).double().eval()
    ids = torch.randint(3, 50, (1, 5))
    before = model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None)
    graph = auxin.trace(model, {"input_ids": ids})
    for group in graph.growable():
        auxin.widen(model, group, 1, graph=graph, method="net2net")
    assert torch.equal(model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None), before)
