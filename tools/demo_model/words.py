# ruff: noqa: SIM905, E501 - lists of words read best as words, and a CJK character counts double
"""Hold the word lists from which the corpus is made.

What this room does: names, cities, things and phrases in English and Chinese.
What it knows: nothing of tasks; `corpus` combines the words. Names are many, so that copying them
from the prompt is learned rather than the names themselves.
What it never does: draw at random.
"""

from __future__ import annotations

EN_PERSONS = tuple(
    (
        "Anna Ben Carla David Emma Frank Grace Henry Irene Jack Karen Leo Maria Noah Olivia Peter "
        "Quinn Rosa Sam Tina Ursula Victor Wendy Xavier Yara Zoe Alice Bruno Clara Dylan Elena "
        "Felix Gina Hugo Ivan Julia Kevin Laura Martin Nora Oscar Paula Robert Sofia Thomas Una "
        "Vera Walter Yusuf Zara Amir Bella Carlos Diana Edgar Fiona George Helen Isaac Jane Lena "
        "Max Mila Nina Omar Paul Rita Simon Theo Ugo Viola Will Tom Mary John Lucy Mark Eva Adam"
    ).split()
)
EN_CITIES = tuple(
    (
        "Paris London Berlin Madrid Rome Vienna Prague Oslo Dublin Lisbon Athens Warsaw Zurich "
        "Geneva Munich Hamburg Milan Naples Lyon Porto Boston Chicago Denver Seattle Austin Dallas "
        "Miami Toronto Montreal Tokyo Kyoto Osaka Seoul Sydney Perth Cairo Nairobi Lagos Delhi "
        "Mumbai Dubai Istanbul Helsinki Stockholm Brussels Amsterdam Bern Bonn Turin Leeds Bristol"
    ).split()
)
EN_COMPANIES = tuple(
    (
        "Acme Globex Initech Umbra Vertex Nimbus Orion Zenith Apex Lumen Quanta Solara Helix "
        "Novatek Bluewave Redwood Ironforge Skyline Polaris Cobalt Meridian Sunrise Northwind "
        "Contoso Fabrikam"
    ).split()
)
EN_COLOURS = ("red", "blue", "green", "black", "white", "yellow", "brown", "grey", "pink", "purple")
EN_THINGS = tuple(
    (
        "lamp chair table phone laptop camera watch bag bottle book pen cup knife bike coat shoe "
        "clock radio mirror pillow blanket kettle toaster fan heater speaker keyboard printer "
        "monitor desk"
    ).split()
)
EN_GOOD = ("great", "excellent", "wonderful", "fantastic", "perfect", "amazing", "superb", "lovely")
EN_BAD = (
    "terrible", "awful", "broken", "useless", "horrible", "poor", "disappointing", "faulty",
)  # fmt: skip
EN_PLAIN = ("okay", "average", "ordinary", "standard", "acceptable", "normal", "fair", "usual")
EN_GOOD_TAILS = (
    "I love it.",
    "I am very happy.",
    "I would buy it again.",
    "It works so well.",
    "Best purchase this year.",
    "Highly recommended.",
)
EN_BAD_TAILS = (
    "I want my money back.",
    "I hate it.",
    "It broke after one day.",
    "Never again.",
    "A waste of money.",
    "Do not buy it.",
)
EN_PLAIN_TAILS = (
    "It does what it says.",
    "Nothing special.",
    "Neither good nor bad.",
    "It is as described.",
    "I have no strong opinion.",
    "It arrived on Monday.",
)

ZH_PERSONS = tuple(
    (
        "王伟 李娜 张敏 刘洋 陈静 杨帆 赵磊 黄丽 周杰 吴芳 徐强 孙悦 马超 朱琳 胡军 郭涛 何雪 高峰 林浩 "
        "罗兰 郑爽 梁晨 谢宁 宋佳 唐明 许晴 韩冰 冯雷 邓超 曹颖 彭博 曾黎 肖阳 田甜 董洁 潘云 袁泉 蔡明 "
        "蒋欣 余波 杜鹃 叶青 程勇 魏红 苏梅 吕良 丁香 任重 沈月 姚远"
    ).split()
)
ZH_CITIES = tuple(
    (
        "北京 上海 广州 深圳 杭州 南京 成都 重庆 武汉 西安 苏州 天津 长沙 青岛 大连 厦门 昆明 济南 沈阳 "
        "福州 合肥 郑州 宁波 无锡 贵阳 南宁 海口 兰州 太原 哈尔滨"
    ).split()
)
ZH_COMPANIES = tuple(
    (
        "华星 远大 天成 金石 蓝海 东方 恒通 盛达 新域 云帆 宏图 瑞丰 长青 中科 星河 安泰 博远 鼎新 海纳 "
        "泰和"
    ).split()
)
ZH_COLOURS = tuple("红色 蓝色 绿色 黑色 白色 黄色 棕色 灰色 粉色 紫色".split())
ZH_THINGS = tuple(
    (
        "台灯 椅子 桌子 手机 电脑 相机 手表 背包 水杯 书 钢笔 茶壶 刀 自行车 外套 鞋子 闹钟 收音机 镜子 "
        "枕头 毯子 风扇 音箱 键盘 打印机"
    ).split()
)
ZH_GOOD = ("非常好", "很棒", "完美", "很满意", "太好了", "出色", "优秀", "好极了")
ZH_BAD = ("很差", "糟糕", "太烂了", "坏了", "没用", "很失望", "有毛病", "差极了")
ZH_PLAIN = ("一般", "还行", "普通", "凑合", "中规中矩", "平常", "过得去", "马马虎虎")
ZH_GOOD_TAILS = ("我很喜欢。", "下次还买。", "强烈推荐。", "用着很舒服。", "物超所值。")
ZH_BAD_TAILS = ("我要退货。", "再也不买了。", "用一天就坏。", "浪费钱。", "千万别买。")
ZH_PLAIN_TAILS = ("没什么特别。", "和描述一样。", "不好不坏。", "周一收到的。", "没有太多感觉。")
