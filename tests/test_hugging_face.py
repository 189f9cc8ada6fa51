"""Language models as transformers builds them: cache on, outputs of its own types, nothing wrapped."""

from pathlib import Path
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


LAYERS = {
    "GPT2LMHeadModel": ("GPT2Config", {"vocab_size": 50, "n_embd": 24, "n_layer": 2, "n_head": 4}, "transformer.h"),
    "LlamaForCausalLM": ("LlamaConfig", GROUPED, "model.layers"),
    "Qwen2ForCausalLM": ("Qwen2Config", GROUPED, "model.layers"),
    "Gemma2ForCausalLM": ("Gemma2Config", {**GROUPED, "head_dim": 8}, "model.layers"),
    "Gemma3ForCausalLM": ("Gemma3TextConfig", {**GROUPED, "head_dim": 8}, "model.layers"),
    "MixtralForCausalLM": (
        "MixtralConfig",
        {**GROUPED, "hidden_size": 48, "num_attention_heads": 6, "intermediate_size": 16, "num_local_experts": 2},
        "model.layers",
    ),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", SMALL, "gpt_neox.layers"),
    "OPTForCausalLM": (
        "OPTConfig",
        {**SMALL, "ffn_dim": 23, "word_embed_proj_dim": 60, "max_position_embeddings": 32},
        "model.decoder.layers",
    ),
    "MambaForCausalLM": (
        "MambaConfig", {"vocab_size": 50, "hidden_size": 20, "state_size": 5, "time_step_rank": 3}, "backbone.layers",
    ),
}  # fmt: skip


def language_model(name: str) -> tuple[Any, str]:
    config, settings, layers = LAYERS[name]
    size = "n_layer" if "n_layer" in settings else "num_hidden_layers"
    torch.manual_seed(0)
    return getattr(transformers, name)(getattr(transformers, config)(**SPECIAL, **{**settings, size: 2})).eval(), layers


def generated(model: Any, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    return model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None, **options)


@pytest.mark.parametrize("name", LAYERS)
def test_a_language_model_gets_more_layers_and_is_saved_as_one_of_its_class(name: str, tmp_path: Path) -> None:
    """Copies of layers leave the function alone, have cache entries of their own, and end up in the list of layers."""
    model, layers = language_model(name)
    ids = torch.randint(3, 50, (2, 7))
    graph = auxin.trace(model, {"input_ids": ids})
    with torch.no_grad():
        before, tokens = model(ids).logits, generated(model, ids)
    for number in (1, 0, 1):
        auxin.deepen(model, f"{layers}.{number}", graph=graph)
    assert model.config.num_hidden_layers == 5
    with torch.no_grad():
        assert (model(ids).logits - before).abs().max() < 1e-5 * max(1.0, float(before.abs().max()))
    assert torch.equal(generated(model, ids), tokens)
    for parameter_name, parameter in model.named_parameters():
        if ".grown." in parameter_name:
            torch.nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        after, tokens = model(ids).logits, generated(model, ids)
    assert not torch.allclose(after, before, atol=1e-3)
    assert torch.equal(generated(model, ids, use_cache=False), tokens)
    plain = auxin.unnest(model, {"input_ids": ids})
    assert torch.equal(generated(plain, ids), tokens)
    plain.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, after)
    assert torch.equal(generated(loaded, ids), tokens)
    assert not any("grown" in key for key, _ in plain.named_parameters())


def test_layers_that_share_a_cache_by_their_place_are_not_copied() -> None:
    model, _ = language_model("LlamaForCausalLM")
    model.config.num_kv_shared_layers = 1
    graph = auxin.trace(model, {"input_ids": torch.randint(3, 50, (2, 7))})
    assert not any(site.neutral for site in graph.sites)


def test_copied_layers_train_with_checkpointed_activations() -> None:
    model, layers = language_model("LlamaForCausalLM")
    ids = torch.randint(3, 50, (2, 7))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    auxin.deepen(model, f"{layers}.1", graph=auxin.trace(model, {"input_ids": ids}), optimizer=optimizer)
    model.train()
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.zero_grad()
        model(ids, labels=ids, use_cache=False).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer.step()
    assert any(not torch.equal(value, before[key]) for key, value in model.state_dict().items() if ".grown." in key)


VISION: dict[str, tuple[str, dict[str, Any], int, tuple[str, ...]]] = {
    "ViTForImageClassification": (
        "ViTConfig",
        {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32, "patch_size": 8},
        16,
        ("vit.layers.0", "vit.layers.1", "vit.layers.0"),
    ),
    "ConvNextForImageClassification": (
        "ConvNextConfig",
        {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 2, 1]},
        64,
        ("convnext.encoder.stages.1.layers.0", "convnext.encoder.stages.2.layers.0"),
    ),
    "ResNetForImageClassification": (
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [2, 2], "layer_type": "basic"},
        32,
        ("resnet.encoder.stages.0.layers.1", "resnet.encoder.stages.1.layers.1", "resnet.encoder.stages.1.layers.1"),
    ),
}


@pytest.mark.parametrize("name", VISION)
def test_a_vision_model_gets_more_blocks_and_is_saved_as_one_of_its_class(name: str, tmp_path: Path) -> None:
    config, settings, size, sites = VISION[name]
    extra = {"image_size": size} if "patch_size" in settings else {}
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, config)(**settings, **extra)).eval()
    images = torch.randn(2, 3, size, size)
    graph = auxin.trace(model, {"pixel_values": images})
    for site in sites:
        auxin.deepen(model, site, graph=graph)
    for parameter_name, parameter in model.named_parameters():
        if ".grown." in parameter_name:
            torch.nn.init.normal_(parameter, std=0.1)
    auxin.unnest(model, {"pixel_values": images}).save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(images).logits, model(images).logits)
