"""Word material: common words, names, places, and words made of syllables so that spelling generalises.

Independent of skills and splits; the caller passes a random number generator.
"""

from __future__ import annotations

from random import Random


def split(text: str) -> tuple[str, ...]:
    """Return the words of `text`."""
    return tuple(text.split())


WORDS: tuple[str, ...] = split("""
    apple apron arrow autumn acorn actor address afternoon airport album alley almond amber anchor angle ankle
    apricot arch attic avenue bacon badge bagel baker balance balloon bamboo banana bandage banner barrel basin
    basket battery beach beacon bean beard beaver beetle bell belt bench berry bicycle billboard birthday biscuit
    blackberry blanket blossom blueberry board bonnet boot border bottle boulder bowl bracelet branch brass bread
    breakfast breeze brick bridge broccoli broom brother brush bubble bucket building bullet bundle burrow butter
    butterfly button cabbage cabin cable cactus camel camera candle cannon canvas carpet carriage carrot castle
    cattle cellar cereal chair chalk channel chapel cheese cherry chess chicken chimney chocolate cinema circle
    class clay clever cliff clock cloud clover coast coat coffee collar comet committee compass cookie copper coral
    corner cottage cotton couch country cousin cradle cranberry crayon cream cricket crocodile crown crystal
    cupboard curtain cushion daisy dance dancer dawn desert dessert diamond dinner dinosaur doctor dollar dolphin
    donkey door dragon drawer dream dress drum eagle earring earth easel echo elbow elephant engine envelope error
    evening fabric factory falcon family farmer feather fence ferry fiddle field finger fire flag flame flower flute
    fog forest fork fossil fountain fox freckle freedom friend frog fruit funnel furniture galaxy garage garden
    garlic gate giraffe glacier glass glove goose grammar grape grass grocery guitar hammer hammock handle harbour
    harvest hat hazel heart hedge helmet herring hill hockey honey hood horizon hotel house hurry husband iceberg
    icicle igloo ink insect iron island ivory jacket jam jelly jewel jigsaw journey judge juggle juice jungle kayak
    kennel kettle keyboard kitchen kitten kiwi knee knife ladder lady lagoon lamp lantern lark lawn leather lemon
    lesson lettuce library lily lime linen lion little lizard lobster locket loop lunch machine magnet mango maple
    marble market marmalade mask meadow melon memory metal middle milk million mineral minute mirror mitten money
    monkey moon morning mosquito moss moth mother motor mountain muffin museum mushroom music mustard napkin
    necklace needle nest nettle noodle north notebook nutmeg oak ocean october office olive omelette onion orchard
    otter oven owl oyster paddle page paint palace pancake panda paper parcel parsley path pattern pavement peach
    peanut pear pebble pencil penguin pepper picnic picture pigeon pillow pilot pine pizza planet plate pocket poem
    poppy porridge possess potato pottery pretzel prince printer pudding pumpkin puppet puppy puzzle pyramid queen
    quill radio radish railway rain rainbow raspberry raven recorder ribbon rice river roof root rooster rose rubber
    rudder saddle sail salmon sand sandal sandwich sauce saucer school scissors sea seed sentence shadow shell ship
    shoe shoulder shovel shrimp silver sister sketch sky sleep slipper smoke snail snow soap sock soldier song soup
    spade sparrow spider spinach spoon spring squirrel stable stamp star station stone stool storm stove straw
    stream street success sugar summer sun sunset swallow swan sweater swing tailor tea teacher teapot temple tennis
    terrace theatre thistle thread thunder ticket tiger timber tissue toast toffee tomato tomorrow tower towel
    traffic train tree trumpet tulip tunnel turkey twig umbrella uncle valley vanilla vase velvet village vinegar
    violet violin wagon waffle wallet walnut walrus water wave whale wheat wheel whisker whistle willow wind window
    winter wolf wood wool worm writer yard yogurt zebra zipper above across begin between bitter bright broken carry
    clean common correct differ double early eleven empty enough every finally follow funny gentle happy heavy
    hollow hundred important immediate inside large letterbox mirrors narrow necessary occur often perfect pretty
    quick quiet really recommend rotten round running seven several silly simple sorry still stupid sudden sunny
    sweet swimming tall terrible tidy tiny twelve twenty under unless until usual warm welcome whole wonderful
    yesterday
    """)

FRAME: tuple[str, ...] = split("""
    about Add add Adds after age agreed alphabetical Always am amount an and animal Answer answer answers appear Are
    are arguments array as Ask assistant at away backwards batches bee below bigger book Books boolean by Calculate
    call Can can capital chat Chinese chunks city client code cold colour colours come comes compare compatible
    completions computes Convert convert Converts Copy costs Count count cow cups day decimals degrees description
    digits distance Do do does each eats else End end English equal euros Everyone facts false feet few Find find
    fine folder for framework from gardener generates get Give goes Goodbye guests had hall has have health Hello
    Help helpful Here here Hi host hot hour How how HTTP http hub hungry ice id In in inference integer interface
    into Is is It it item items job JSON keys kilos know language larger laughed learning left legs length letter
    letters like likes Linux list listens lists litres lives LLM long made make many married me meeting message
    metres mild miles minus minutes MLX model models more Most much My name next No no Nobody not Noted Notes notes
    nothing number numbers object of old on One one only open OpenAI or order pages parameters passed people person
    Phone phone pints Pippin Please plus price product project prompts properties Put query question rained Read
    ready recall Remember remember Repeat report requests required Reserve response Reverse robot room Run run runs
    sailor say schema Search search Searches seats Send send Sends sent serve server Set set Sets ships shorter
    silicon small smaller So some Somebody Sort sort Spanish speak Spell spell Start starts stock stopped stops
    streams string strings sums system table taken Tell tell text than thank Thanks That that The the There these
    think this three Time time timer times to too tool Tools tools trained Translate translate Translates true two
    type units up Use user very vs wait was Weather weather web weighs weight went were wet What when Where Which
    which Who Why with word words works Write years Yes You you Your your
    """)
"""Words of questions and answers, seldom spelled: a token each. No word of WORDS is among them."""

NAMES: tuple[str, ...] = split("""
    Ada Adam Agnes Ahmed Alan Alba Albert Alex Alice Amara Amir Amy Ana Andrea Anita Anna Anton Arthur Astrid Aya Bella
    Ben Bianca Boris Bruno Carla Carlos Carmen Cecilia Chloe Clara Conrad Cora Daniel Daria David Diego Dina Dora Edith
    Elena Eli Ella Elsa Emil Emma Eric Esther Eva Fatima Felix Fiona Flora Frank Freya Gabriel George Gina Grace Greta
    Hana Hannah Harold Hassan Heidi Helen Henry Hugo Ida Igor Ines Ingrid Irene Isabel Ivan Jack Jacob Jan Jane Jasper
    Joan Johan John Jonas Joseph Judith Julia Karim Karl Kate Kenji Kim Kira Klara Lara Laura Lena Leo Lewis Lily Linda
    Lola Louis Lucia Lucy Luis Luna Magnus Marco Maria Mark Marta Martin Mary Max Maya Mia Milan Mina Mira Miriam Mona
    Nadia Nina Noah Nora Olga Oliver Omar Oscar Otto Pablo Paul Paula Pedro Peter Petra Rafael Raj Rita Robert Rosa Ruth
    Sam Samir Sara Selma Simon Sofia Stella Sven Tara Theo Thomas Tina Tom Uma Ursula Vera Victor Viola Walter Wanda
    Willa Yara Yusuf Zara Zoe
    """)

CITIES: tuple[str, ...] = split("""
    Accra Amman Athens Baku Berlin Bern Bilbao Bogota Boston Bremen Cairo Calgary Cusco Dakar Delhi Denver Dublin Fez
    Geneva Genoa Ghent Graz Hanoi Havana Kyiv Kyoto Lagos Leeds Leipzig Lima Lisbon London Lyon Madrid Malaga Manila
    Milan Minsk Munich Nairobi Naples Oslo Paris Perth Porto Prague Quito Riga Rome Seoul Sofia Sydney Tallinn Tokyo
    Tunis Turin Vienna Vilnius Warsaw Zagreb Zurich
    """)

COLOURS: tuple[str, ...] = split("red blue green yellow white black brown grey orange purple pink gold")
ANIMALS: tuple[str, ...] = split("cat dog horse rabbit parrot goat fish mouse duck hamster turtle sheep")
FOODS: tuple[str, ...] = split("tea milk bread rice soup cheese honey jam cake fish pasta salad eggs nuts")
JOBS: tuple[str, ...] = split("baker doctor farmer teacher writer painter pilot nurse cook driver singer tailor")
DAYS: tuple[str, ...] = split("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
LETTERS = "abcdefghijklmnopqrstuvwxyz"

_ONSETS = split(
    "b c d f g h j k l m n p r s t v w z b d l m n p r s t bl br ch cl cr dr fl fr gl gr pl pr sh sl st str th tr sw"
)
_VOWELS = split("a e i o u a e i o u a e i o ai ea ee oo ou y")
_CODAS = (*[""] * 14, *split("n r s t l m d k p g ll nn rr ss tt pp ck nd nt rt st ry"))
_ENDINGS = ("s", "ed", "er", "ing", "ly", "y", "ness", "ful", "less", "est", "ery", "berry")


def syllables(rng: Random, shortest: int, longest: int) -> str:
    """Return a pronounceable made-up word of `shortest` to `longest` letters."""
    while True:
        word = ""
        size = rng.randint(shortest, longest)
        while len(word) < size:
            word += rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
        if len(word) <= longest:
            return word


def spelling_word(rng: Random) -> str:
    """Return a word of 3 to 12 letters to spell: a common one, a made-up one, or an extended common one."""
    kind = rng.random()
    if kind < 0.03:
        return rng.choice([word for word in FRAME if 3 <= len(word) <= 12]).lower()
    if kind < 0.45:
        return rng.choice(WORDS)
    if kind < 0.8:
        return syllables(rng, 3, 12)
    word = rng.choice(WORDS) + rng.choice(_ENDINGS if kind < 0.9 else WORDS)
    return word if len(word) <= 12 else word[-rng.randint(4, 12) :]


def given_name(rng: Random) -> str:
    """Return a first name: mostly a real one, otherwise a made-up one."""
    return rng.choice(NAMES) if rng.random() < 0.6 else syllables(rng, 3, 7).capitalize()


def code(rng: Random) -> str:
    """Return four digits, or two capital letters and two digits."""
    if rng.random() < 0.75:
        return f"{rng.randrange(10_000):04d}"
    return "".join(rng.choice(LETTERS) for _ in range(2)).upper() + f"{rng.randrange(100):02d}"
