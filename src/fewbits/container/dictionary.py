"""The preset dictionary of the header: text that headers hold, known before the first byte.

It is part of format 2 (SPEC.md) and never changes within it. Frequent text comes last,
where references to it are shortest.
"""

from __future__ import annotations

__all__ = ["DICTIONARY"]

DICTIONARY = "".join(
    (
        '"bfloat16""float16""float64""uint8""int8""bool""int32"{"d":"float16"}',
        '{"s":"bfloat16"},{"s":"float16"}]],"a":{"lm_head.weight":0},"b":[16],',
        '"skipped":{"source":"settings":{"seed":0"recipe":{"finish":[],"prepare":[],',
        '"rules":[{"method":{"method":"pwfn""hemp""lowbit""transform""nearest""gptq""kmeans"',
        '"gpfq","pattern":"*""keep""bits":4,"bits":2,"target_bytes":"version":"fewbits",',
        '"0embed_tokens.weight","0model.layers.0.self_attn.q_proj.weight","3k_proj.weight",',
        '"3v_proj.weight","3o_proj.weight","2mlp.gate_proj.weight","3up_proj.weight",',
        '"3down_proj.weight","2input_layernorm.weight","2post_attention_layernorm.weight",',
        '"0transformer.h.0.attn.c_attn.weight","1encoder.layer.0.attention.self.query.weight",',
        '"4key.weight","4value.weight","0features.0.0.weight","0classifier.1.weight","0fc1.weight",',
        '"2linear.weight","1bias","2norm1.weight","2norm2.weight","2norm3.weight","0norm.weight",',
        '"2downsample.0.weight","3shortcut.0.weight","0head.weight","0fc.weight","1bias"],',
        '"c":[0,1,1,1,1,2,2,2,2,2,2,2,2,3,3,3,3,3,3],"g":[8,9,5],"l":[10,100,1000,',
        '"t":[["c",[512,512],{"p":"r"}],["t",[256,256],{"b":["g",[128,128]],"c":["g",[64,64]]}],',
        '["g",[64,64,3,3],{"o":1}],["g",[32,32,3,3],{"p":"r"}],',
        '"m":{"n":["0conv1.weight","0bn1.weight","1bias","1running_mean","1running_var",',
        '"1num_batches_tracked","0layer1.0.conv1.weight","2bn1.weight","3bias",',
        '"3running_mean","3running_var","3num_batches_tracked","2conv2.weight","2bn2.weight",',
        '"3bias","3running_mean","3running_var","3num_batches_tracked","1.conv1.weight",',
        '"t":[["g",[16,3,3,3]],["g",[16,16,3,3]],["r",[32]],["r",[10]],["r",[64]],["r",[128]],',
        '["r",[16]],["r",[16]],["r",[16]],["r",[16]],["r",[],{"d":"int64"}],["g",[16,',
    )
).encode("ascii")
