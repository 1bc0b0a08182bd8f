"""A toy made by `write_random_model` learns thirty answers by heart, from scratch."""

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from medsft.chatglm.init import write_random_model
from medsft.chatglm.tokenizer_training import train_tokenizer

PAIRS = (
    ("感冒有什么症状？", "发热、咳嗽、流鼻涕。"),
    ("感冒挂什么科？", "呼吸内科。"),
    ("感冒怎么办？", "多喝水，注意休息。"),
    ("高血压有什么症状？", "头晕、头痛、心悸。"),
    ("高血压挂什么科？", "心血管内科。"),
    ("高血压怎么办？", "少吃盐，按时吃药。"),
    ("糖尿病有什么症状？", "多饮、多尿、体重下降。"),
    ("糖尿病挂什么科？", "内分泌科。"),
    ("糖尿病怎么办？", "控制饮食，监测血糖。"),
    ("肺炎有什么症状？", "咳痰、胸痛、高热。"),
    ("肺炎挂什么科？", "呼吸内科。"),
    ("肺炎怎么办？", "遵医嘱使用抗生素。"),
    ("胃溃疡有什么症状？", "上腹痛、反酸。"),
    ("胃溃疡挂什么科？", "消化内科。"),
    ("胃溃疡怎么办？", "规律进食，戒烟戒酒。"),
    ("哮喘有什么症状？", "喘息、气急、胸闷。"),
    ("哮喘挂什么科？", "呼吸内科。"),
    ("哮喘怎么办？", "远离过敏原，随身带药。"),
    ("痛风有什么症状？", "关节红肿、剧烈疼痛。"),
    ("痛风挂什么科？", "风湿免疫科。"),
    ("痛风怎么办？", "少吃海鲜和内脏。"),
    ("湿疹有什么症状？", "皮肤瘙痒、红斑。"),
    ("湿疹挂什么科？", "皮肤科。"),
    ("湿疹怎么办？", "保持皮肤湿润。"),
    ("贫血有什么症状？", "乏力、面色苍白。"),
    ("贫血挂什么科？", "血液内科。"),
    ("贫血怎么办？", "查明原因，补充铁剂。"),
    ("近视有什么症状？", "看远处模糊。"),
    ("近视挂什么科？", "眼科。"),
    ("近视怎么办？", "配戴眼镜，少看屏幕。"),
)
NUM_STEPS = 150
PEAK_LEARNING_RATE = 3e-3


@pytest.mark.parametrize("preset", ["toy", pytest.param("tiny", marks=pytest.mark.slow)])
def test_learns_thirty_answers_from_scratch(tmp_path, preset):
    train_tokenizer([question + answer for question, answer in PAIRS], tmp_path / "词表", vocab_size=600)
    write_random_model(
        tmp_path / "model", tmp_path / "词表", preset, {"num_layers": 6} if preset == "tiny" else None
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    model = AutoModel.from_pretrained(tmp_path / "model", dtype=torch.float32).train()

    prompts = [tokenizer.encode(question) for question, _ in PAIRS]
    answers = [[*tokenizer.encode_plain(answer), tokenizer.eop_token_id] for _, answer in PAIRS]
    length = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    ids = torch.full((len(PAIRS), length), tokenizer.pad_token_id)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        start = length - len(prompt) - len(answer)
        ids[row, start:], mask[row, start:] = torch.tensor(prompt + answer), 1
        labels[row, start + len(prompt) - 1 :] = ids[row, start + len(prompt) - 1 :]  # from <sop> on

    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    losses = []
    for step in range(NUM_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LEARNING_RATE * min(1.0, (step + 1) / 15) * (1 - step / NUM_STEPS)
        loss = model(ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] > 5.0 and losses[-1] < 0.1

    questions = tokenizer([question for question, _ in PAIRS], padding=True, return_tensors="pt")
    out = model.eval().generate(**questions, do_sample=False, max_new_tokens=20)
    spoken = tokenizer.batch_decode(out[:, questions["input_ids"].shape[1] :], skip_special_tokens=True)
    half_width = [answer.replace("，", ",") for _, answer in PAIRS]  # what the normaliser makes of it
    assert spoken == half_width
