"""Symptoms that belong to so few diseases that they may be denied of the others.

Common symptoms are never listed: almost every disease can have a headache, a fever or a cough. Before one is
added, all the negatives it gives (`medsft data build --kinds yes_no`) are read.
"""

DISTINCTIVE_SYMPTOMS = frozenset(
    (
        "双下肢紫癜",  # IgA vasculitis
        "口唇樱桃红色",  # carbon monoxide
        "口腔麻疹黏膜斑",  # measles
        "咳大量脓臭痰",  # lung abscess
        "咽部疱疹",  # herpangina
        "外阴溃疡",  # Behcet's disease
        "手足疱疹",  # hand, foot and mouth disease
        "指端脱皮",  # Kawasaki disease
        "方颅",  # rickets
        "畏声",  # migraine
        "皮肤硬化",  # systemic sclerosis
        "磨牙后区肿痛",  # pericoronitis
        "转移性右下腹痛",  # appendicitis
        "面部蝶形红斑",  # lupus
        "颈前无痛性肿块",  # thyroid cancer
        "鸡胸",  # rickets
    )
)
