"""Lexicon of `noun_phrases`: words for how people look and what they wear and carry.

Written from general knowledge of British and American English. Words are in the singular if their plural ends in -s or
-es, which `noun_phrases` finds by itself. The grammar takes an unlisted word for a noun, or for a modifier if a noun
follows.
"""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


COLOURS = _words("""
    amber apricot aqua aquamarine auburn azure beige black blond blonde blue bronze brown brunette burgundy camel
    caramel champagne charcoal chestnut chocolate copper coral cream crimson cyan dark ebony ecru emerald fuchsia gold
    golden gray green grey indigo ivory jade khaki lavender lemon light lilac lime magenta mahogany maroon mauve mint
    mustard navy ochre off-white olive orange pale peach pink plum purple red rose ruby russet rust salmon sapphire
    scarlet silver tan taupe teal turquoise ultramarine vermilion violet white wine yellow
""")

# Other words that describe a noun after them.
MODIFIERS = _words("""
    a-line aged ankle-length athletic average average-height baggy bald balding banded bare barefoot barefooted bearded
    belted bespectacled big blonde-haired bobbed bright brightly-coloured broad brown-haired bulky button-down button-up
    calf-length camo camouflage camouflaged canvas cashmere casual check checked checkered chequered chiffon children's
    chubby chunky classic clean-shaven collared color-blocked colored colorful colour-blocked coloured colourful
    contrasting corduroy cotton crew-neck crochet crocheted cropped curled curly denim diagonal dim dirty dotted
    double-breasted dressy elderly elegant embroidered enormous extra-large faint fashionable fat fit fitted fitting
    flared flat fleece floor-length floral flowered flowery flowing flowy fluorescent form-fitting formal frizzy
    full-length fur furry fuzzy geometric gingham graphic graying greying grown haired half-sleeve heavy heavy-set
    heavyset high high-heel high-top high-waisted hooded horizontal houndstooth huge knee-high knee-length knit knitted
    lace-up laced lacy ladies' large layered lean leather length lengthy leopard lined linen little long long-sleeve
    loose loose-fitting loose-hanging low low-cut lycra massive matching medium men's mesh messy metallic mid mid-length
    middle-aged mini modern monochrome mottled multi-color multi-colour multicolor multicolored multicolour
    multicoloured muscular narrow neat neon neutral nylon obese old old-fashioned older open open-toed oval oversize
    oversized overweight padded paisley pastel patterned permed petite pinstripe pinstriped plaid plain plastic pleated
    plump plunging polka-dot polka-dotted printed puffy quarter-length quilted relaxed ribbed round round-neck ruffled
    satin scoop-neck sequined shaggy sheer shiny short short-sleeve shoulder-length silk silky skinned skinny sleek
    sleeved sleeveless slender slim slim-fit slip-on small snug spandex spiked spiky sporty spotted square stocky stout
    straight straight-leg strapless strappy stretchy striped stripey stripy strong stylish suede tailored tall tanned
    tapered tartan teenage thick thigh-length thin thinning three-quarter tie-dye tie-dyed tight tight-fitting tinted
    tiny toned transparent trendy tweed two-piece two-tone unkempt v-neck v-necked velvet vertical waist-length wavy
    wide windswept women's wool woolen woollen woolly worn-out woven young younger youthful zip-up zippered
""")

# Modifiers that are a garment if no noun follows: "black long spandex, light purple flats".
STAND_INS = _words("""
    button-down button-up camo camouflage crew-neck denim fleece half-sleeve long-sleeve lycra round-neck short-sleeve
    slip-on spandex v-neck zip-up
""")

# Of things and hair: "rolled up sleeves", "her hair is tied back", "a jacket, unzipped".
PARTICIPLES = _words("""
    braided button buttoned creased cut dyed faded folded fringed knotted lace parted plaited pulled ripped rolled
    shaved slicked tattered tied torn trimmed tucked unbuttoned untucked unzipped wrinkled zip zipped
""")

PERSONS = _words("""
    adolescent adult baby boy child children driver female gentleman gentlemen girl guy kid lad lady male man men
    pedestrian people person schoolboy schoolgirl student teen teenager toddler woman women worker youngster youth
""")

GARMENTS = _words("""
    anorak apparel apron attire bikini blazer blouse bodysuit bolero bottoms bra breeches camisole capris cardigan
    cargos cheongsam chinos clothes clothing coat collar costume coverall cuff culottes dress dungarees fatigues frock
    garment gilet gown hem hood hoodie hoodies hoody jacket jean jeggings jersey jogger joggers jumper jumpsuit khakis
    kilt kimono lapel leggings leotard lining miniskirt neckline outfit overalls overcoat pajamas pants pantyhose parka
    pea-coat peacoat pinafore pocket polo poncho pull-over pullover pyjamas qipao raincoat robe romper sari seam shirt
    shorts singlet skirt skort slacks sleeve suit suspenders sweater sweatpants sweats sweatshirt sweatsuit swimsuit
    t-shirt tank-top tee tights top trackpants tracksuit trench trouser trousers tshirt tunic turtleneck tuxedo
    undershirt underwear uniform vest waist-band waistband waistcoat windbreaker zipper
""")

FOOTWEAR = _words("""
    ankle-boots boot brogue cleat clog converse crocs espadrille flats flip-flop flip-flops flops footwear galoshes heel
    high-heels high-tops loafer mule oxford platforms pump sandal shoe shoelace slipper sneaker sock sole stiletto
    stocking trainer vans wedge wellington
""")

CARRIED = _words("""
    backpack bag baggage basket bicycle bike book bookbag bottle box briefcase bucket cane carrier cellphone clutch
    coffee-cup crutch cup document drink drinks duffel envelope fanny-pack folder food handbag headphone headset helmet
    holdall ipad iphone jug knapsack laptop luggage magazine messenger-bag motorbike motorcycle mug newspaper notebook
    package packet papers parasol parcel phone pouch pram purse pushchair racket rucksack sack satchel scooter
    skateboard smartphone snack stroller suitcase tablet tote trolley umbrella wallet wheelchair
""")

WORN_BESIDES = _words("""
    accessories accessory badge band bandana bandanna bangle barrette beads beanie belt beret bonnet bow bow-tie bowtie
    bracelet brooch buckle cap cape chain cravat earbud earbuds earmuffs earphone earphones earring eyeglasses eyewear
    facemask fedora glasses glove goggles hairband hairclip hairpin hat headband headdress headgear headscarf headwear
    hijab jewellery jewelry kerchief keychain lanyard mask mitten necklace necktie patch pendant pin ponytail-holder
    ribbon ring sash scarf scarves scrunchie shawl spectacles strap sunglass sunglasses sunhat tattoo tie turban veil
    visor wallet watch wig wristband wristwatch
""")

HAIR = _words("""
    afro bang bangs beard bob braid build bun complexion cornrows crewcut curl dreadlocks dreads figure fringe goatee
    hair haircut hairdo hairline hairstyle highlights locks make-up makeup moustache mustache physique pigtail pixie
    plait pony-tail ponytail sideburns skin stubble tail undercut updo whiskers
""")

MARKINGS = _words("""
    badge cartoon decal design dot emblem emblems flower graphics heart lettering logo motif pattern piping polka
    polka-dots print slogan spot star stripe stripes symbol trim trimming writing
""")

# Parts of a garment that can describe a whole one: "a long sleeve black shirt".
PARTS = _words("collar heel sleeve strap")

# The words that end a phrase.
NOUNS = PERSONS | GARMENTS | FOOTWEAR | CARRIED | WORN_BESIDES | HAIR | MARKINGS

# Surroundings, without things that people also carry or have printed on clothes ("sign", "chair", "flower").
SCENERY = _words("""
    alley asphalt awning bench bollard bricks bridge building bus bush car ceiling concrete corridor couch counter
    courtyard crosswalk curb door doorway driveway elevator escalator fence floor footpath fountain garage gate grass
    ground hallway handrail headlight hedge house hydrant intersection kerb lamp-post lamppost lawn lobby parapet park
    pathway pavement pillar platform pole pond railing road roadside roof shop shrub sidewalk snow sofa stair staircase
    stairs stairway stoplight storefront street streetlight subway supermarket suv table taxi tram tree truck tunnel van
    vehicle walkway wall window yard
""")

# Of wearing, carrying and other actions: base forms, and irregular forms.
VERBS = _words("""
    accompanied accompany appear approach bear bearing bend bent bore bring brought brushed came can carried carries
    carry chat clad climb clipped clothed clutched clutching combed come complete consist contain could cover did do
    does don drag draped dressed dressing eat enter exit faced faces facing feature fits follow gathered gaze get glance
    go goes gone got grab grip had hang has have held hold hung include jog keep kept laugh lay lean leans leave let lie
    listen look lug made make march match may might move must opens paired pass pinned place play point pose pull push
    put ran reach read rest ride rode run rush sat saw see seem seen should show shown sit sling slung smile smoke speak
    spoke sported sporting stand stare step stood stoop stride stroll styled swept take talk text think took topped
    travel tries try turn type use wait walk wear will wore worn would wrapped
""")

# Forms that belong to a noun after them: "hand held purse", "leather looking jacket".
VERBS_IN_NAMES = _words("""
    bear carried clad clipped clothed combed covered draped dressed gathered hanging held hung looking made pinned
    pointed sling slung stand standing styled swept topped travel turn turned worn wrapped
""")

# Also of shoes, clothes and bags: "running shoes".
GERUNDS = _words("climbing cycling dancing hiking jogging running shopping skating skiing swimming training walking")

# Two words read as one, by class in `noun_phrases`: compounds, and names that would be read as verbs.
TWO_WORDS = {
    "N": """back pack|down coat|down jacket|down vest|dressing gown|hiking pole|pull over|reading glasses|riding boot
        |riding hat|riding pants|ski pole|sleeping bag|t shirt|trekking pole|walking pole""",
    "M": """children s|heavy set|light up|men s|see through|tie dye|tie dyed|women s""",
    "F": "button down|button up|slip on|zip up",
    "C": "brick red|forest green|grass green|off white|snow white",
    "V": "carry on|pull on|wrap around",
    "S": """bus stop|garbage bin|garbage can|parking lot|road sign|stop light|street light|street sign|traffic light
        |traffic sign|trash bin|trash can|zebra crossing""",
    "x": "letter s|size s|u s",
}
