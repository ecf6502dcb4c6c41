"""Makes transformers' Auto classes of this process know the DroPE format, so that nothing needs trust_remote_code."""


def register_drope() -> None:
    """May be called any number of times."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    from model_surgery.hub_code import configuration_drope, modeling_drope

    for family in ("Llama", "Qwen2"):
        config = getattr(configuration_drope, f"DroPE{family}Config")
        AutoConfig.register(config.model_type, config, exist_ok=True)
        for auto, suffix in ((AutoModel, "Model"), (AutoModelForCausalLM, "ForCausalLM")):
            model = getattr(modeling_drope, f"DroPE{family}{suffix}")
            auto.register(config, model, exist_ok=True)
            model.register_for_auto_class(auto)  # so that save_pretrained takes the code along
        config.register_for_auto_class()
