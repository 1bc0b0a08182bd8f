"""Relations that some kinds of questions are about, by the names that the templates know."""

SYMPTOMS = "相关症状"
DEPARTMENT = "所属科室"
DRUGS = "药物治疗"
RELATED = "相关疾病"
BODY_PART = "发病部位"
