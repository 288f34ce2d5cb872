"""Hugging Face's T5 in PyTorch with given weights, and what it computes."""

import numpy as np
import torch
import transformers
from parity_cases import DECODE_LENGTH, OBJECTIVE, padded, state_dict, trimmed

# The machine is shared with the other test processes.
torch.set_num_threads(1)


def hf_model(config, params):
    """`T5ForConditionalGeneration` of our configuration with our weights.

    Transformers 5 ties the output matrix in every model that it makes from a configuration, also
    where the configuration says otherwise; an untied one is put in its place afterwards.
    """
    tied = config.logits_via_embedding
    hf = transformers.T5Config(
        vocab_size=config.vocab_size,
        d_model=config.emb_dim,
        d_kv=config.head_dim,
        d_ff=config.mlp_dim,
        num_heads=config.num_heads,
        num_layers=config.num_encoder_layers,
        num_decoder_layers=config.num_decoder_layers,
        feed_forward_proj="relu" if tied else "gated-gelu",
        tie_word_embeddings=tied,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    model = transformers.T5ForConditionalGeneration(hf).eval()
    assert model.config.scale_decoder_outputs == tied
    tensors = {name: torch.from_numpy(array.copy()) for name, array in state_dict(params).items()}
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(tensors["lm_head.weight"]))
    loaded = model.load_state_dict(tensors, strict=False)
    aliases = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    assert not loaded.unexpected_keys
    assert set(loaded.missing_keys) == aliases | ({"lm_head.weight"} if tied else set())
    assert (model.lm_head.weight is model.shared.weight) == tied
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, tensors[name]), name
    return model


def hf_logits(model, inputs, mask, decoder_inputs):
    with torch.no_grad():
        output = model(
            input_ids=torch.tensor(inputs, dtype=torch.long),
            attention_mask=torch.tensor(mask),
            decoder_input_ids=torch.tensor(decoder_inputs, dtype=torch.long),
        )
    return output.logits.numpy()


def least_relu_input(model, pairs):
    """Smallest magnitude of what any ReLU of the model is given at a real token of the pairs."""
    masks, magnitudes = {}, []

    def hook(stack):
        def measure(module, args, output):
            magnitudes.append(float(output[torch.tensor(masks[stack] > 0)].abs().min()))

        return measure

    hooks = [
        module.register_forward_hook(hook(name.split(".")[0]))
        for name, module in model.named_modules()
        if name.endswith("DenseReluDense.wi")
    ]
    for stream in ("label", "rationale"):
        inputs, masks["encoder"] = padded([pair[f"{stream}_inputs"] for pair in pairs])
        targets, masks["decoder"] = padded([pair[f"{stream}_targets"] for pair in pairs])
        decoder_inputs = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
        hf_logits(model, inputs, masks["encoder"], decoder_inputs)
    for handle in hooks:
        handle.remove()
    return min(magnitudes, default=1.0)


def hf_losses(model, pairs):
    """Each stream's loss, the two combined as the released recipe does, and its gradients.

    Args:
        model: of `hf_model`.
        pairs: each in a row of its own, padded to the longest; a target of weight 0 is ignored.

    Returns:
        ``{"loss", "label_loss", "rationale_loss"}`` and Hugging Face's name -> gradient.
    """
    losses = {}
    for stream in ("label", "rationale"):
        inputs, mask = padded([pair[f"{stream}_inputs"] for pair in pairs])
        targets, target_mask = padded([pair[f"{stream}_targets"] for pair in pairs])
        weights = np.array([[pair[f"{stream}_weight"]] for pair in pairs])
        labels = np.where(target_mask * weights > 0, targets, -100)
        losses[f"{stream}_loss"] = model(
            input_ids=torch.tensor(inputs, dtype=torch.long),
            attention_mask=torch.tensor(mask),
            labels=torch.tensor(labels, dtype=torch.long),
        ).loss
    alpha = OBJECTIVE.alpha
    losses["loss"] = alpha * losses["label_loss"] + (1 - alpha) * losses["rationale_loss"]
    model.zero_grad()
    losses["loss"].backward()
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters()}
    return {name: float(loss.detach()) for name, loss in losses.items()}, gradients


def hf_generation(model, rows, batch=32):
    """Greedy tokens of each input, and the smallest lead of a chosen token over the next best.

    The lead is relative to the largest magnitude of that step's logits: where it is near float32's
    rounding, two right implementations may choose differently.
    """
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    outputs, leads = [None] * len(rows), []
    for start in range(0, len(order), batch):
        members = order[start : start + batch]
        inputs, mask = padded([rows[number] for number in members])
        output = model.generate(
            input_ids=torch.tensor(inputs, dtype=torch.long),
            attention_mask=torch.tensor(mask),
            do_sample=False,
            num_beams=1,
            max_new_tokens=DECODE_LENGTH,
            return_dict_in_generate=True,
            output_logits=True,
        )
        for row, number in enumerate(members):
            tokens = trimmed(output.sequences[row, 1:].tolist())
            outputs[number] = tokens
            for logits in output.logits[: len(tokens)]:
                best, second = torch.topk(logits[row], 2).values.tolist()
                leads.append((best - second) / float(logits[row].abs().max()))
    return outputs, leads
