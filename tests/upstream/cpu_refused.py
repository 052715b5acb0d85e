import tempfile

from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

config = LlamaConfig(vocab_size=64, hidden_size=64, num_hidden_layers=1, intermediate_size=128, num_attention_heads=4)
with tempfile.TemporaryDirectory() as folder:
    LlamaForCausalLM(config).save_pretrained(folder)
    nf4 = BitsAndBytesConfig(load_in_4bit=True)
    try:
        AutoModelForCausalLM.from_pretrained(folder, quantization_config=nf4, device_map={"": "cpu"})
    except (RuntimeError, AttributeError, ImportError) as error:
        raise SystemExit(f"{type(error).__name__}: {str(error)[:150]}") from None
