"""The words of the embedded English texts, written down for this project: no corpus or dictionary was copied.

Regular forms are made in :mod:`retort.data.english`. Only words whose plural or past is regular are in the regular
lists; verbs whose last consonant is doubled carry a ``+``.
"""

NOUNS = """
acorn actor address agreement airport alarm album alley almond ambulance anchor angle animal answer ant apple apron
arch argument arm armchair arrow article artist atlas aunt autumn avenue award axle baby badge bag baker balance
balcony ball balloon banana band bank banner bargain barn barrel basement basin basket bat bath battery beach beak
bean bear beard bed bee beetle bell belt bench berry bicycle bill bird biscuit blanket blossom boat bone book boot
border bottle boulder bow bowl box branch bread brick bridge broom brother brush bucket bud budget building bulb bus
bush butcher butter button cabbage cabin cable cactus cage cake calendar camel camera camp canal candle canoe canvas
cap captain car card career carpenter carpet carrot cart castle cat cathedral cave ceiling cellar century chain chair
chalk champion channel chapel chapter charm cheese chef cherry chest chicken chimney chin choir church cinema circle
circus citizen city clay clerk client cliff clinic clock cloud clown coach coast coat coffee coin collar college
colour column comet committee compass concert cone cook copper corn corner cottage cotton couch cough country courage
course cousin cow crab cradle crane crayon cream creature creek cricket crowd crown cup cupboard curtain cushion
custom customer dance daughter dawn day deck decade degree dentist desert desk diamond diary dinner ditch doctor dog
doll dollar dolphin donkey door doorway dragon drawer dream dress driver drum duck dust eagle ear earring earthquake
editor effort egg elbow elephant elevator email emperor empire engine engineer entrance envelope error essay estate
event evening exam example exit expert eye eyebrow fabric factory fair family fan farm farmer father feather fence
ferry festival field fig film finger fire fish flag flame flavour flock floor flour flower flute fog forest fork
fortune fountain fox frame freezer friend frog fruit funnel furnace future galaxy gallery game garage garden garlic
gate gear ghost giant giraffe girl glass glove goat gold gown grain grape grass gravel guard guest guide guitar gull
hair hall hammer hand handle harbour harp hat hawk hay head heart hedge heel helmet hen herb hero highway hill hinge
hobby holiday honey hood hook horizon horn horse hospital hotel hour house humour hunter ice idea igloo inch index
insect invention iron island ivory jacket jar jaw jeep jewel job joke journal journey judge jug juice jungle junior
jury kettle key kid king kingdom kitchen kite kitten knee knight knot label lace ladder lake lamb lamp language
lantern lawn lawyer lemon lesson letter lettuce library lid lift lighthouse lily limb lime lion lip list lizard lock
log lorry luggage lunch machine magazine magnet mail mango map marble march market marriage mask mason mat match mayor
meadow meal measure meat medal melody melon member memory menu merchant message metal meteor method mile milk mill
miner minister minute mirror mist mistake model moment monkey month monument moon morning mother motor mountain
moustache mouth movie mud mug museum mushroom musician mystery nail name napkin nation neck necklace needle neighbour
nephew nest net newspaper niece night noise noodle north nose note notebook novel number nurse nut oak oar oasis ocean
office officer oil olive onion opera orange orchard orchestra organ orphan ostrich oven owl owner oyster package
paddle page paint palace pan pancake panda panel paper parade parcel parent park parrot party passage passenger path
patient pattern pavement peach peanut pear pearl pebble pen pencil penguin people pepper perfume person petal phone
photo piano picnic picture pie pigeon pillow pilot pin pine pipe pirate pitcher plan planet plant plate platform
player plum pocket poem poet point police pond pony pool porch port porter poster pot potato pottery powder prairie
present president price priest prince princess printer prison prize problem professor project promise pudding pump
pumpkin pupil puppet puppy purse puzzle pyramid quarrel quarry quarter queen question queue quilt rabbit raccoon race
radio rail rainbow raisin ranch rat raven razor recipe record refrigerator region report reporter rescue restaurant
result ribbon rice riddle ring river road robin robot rock rocket roof room rooster root rope rose route rug ruler
sail sailor salad salmon sand sandal sandwich saddle saucer sausage scarf school science scientist scissors score
scout screen screw sculptor sea season seat secret seed senator shadow shark shed shell shepherd sheriff ship shirt
shoe shop shore shoulder shovel shower shrimp signal silk silver singer sister skill skirt skull sky slipper smile
smoke snail snake sock sofa soil soldier solution song soup south spade sparrow spider spinach spoon spring square
squirrel stable stadium stairway stamp star statue steak steam stem step stick stitch stocking stomach stone stool
storm story stove stranger straw strawberry stream street string student studio submarine suburb sugar suitcase summer
sun surface surgeon surprise swamp swan sweater table tail tailor tale tank taxi tea teacher team telephone telescope
temple tennis tent theatre thief thimble throat throne thumb thunder ticket tide tiger timber title toast toe toilet
tomato tongue tool torch tortoise tower town toy tractor trader train tram traveller tray treasure tree triangle trick
trousers truck trumpet trunk tub tulip tunnel turkey turtle tutor twig twin uncle uniform union universe valley van
vase vegetable vehicle veil verse vest village vine violin visitor voice volcano voter voyage wagon waiter wall wallet
walnut wardrobe warning watch water wave weather wedding week whale wheat wheel whisker whistle widow wig window wing
winner winter witness wizard wood wool word worker workshop world worm wrist writer yacht yard year zebra zipper zone
"""

NO_PLURAL = """
bread butter chalk cheese coffee copper corn cotton courage cream dust flour fog garlic gold grass gravel hair hay
honey humour ice ivory juice lace lettuce luggage mail meat milk mist mud north oil people police pottery powder rice
salmon sand science scissors shrimp silk silver smoke soil south spinach steam straw sugar tennis thunder toast
trousers water weather wheat wool furniture oasis autumn shelf fish thief
"""

VERBS = """
accept add admire admit+ adopt advise agree allow amuse announce answer appear applaud approach argue arrange arrive
ask attack attend avoid bake balance bark bathe beg+ believe belong blame bless blink boil borrow bounce bow brush
bump burn bury call carry carve cause celebrate challenge change charge chase check cheer chew chop+ claim clap+ clean
clear climb close collect comb compare complain complete confuse connect consider contain continue cook copy correct
cough count cover crash crawl cross cry cure dance dare decide decorate deliver deny describe deserve destroy develop
disagree disappear discover discuss divide doubt drag+ drain dream dress drip+ drop+ dry dust earn empty encourage
enjoy enter entertain escape examine excite excuse exercise exist expand expect explain explore explode express fade
fail fasten fetch fill film fix float flood flow fold follow force frame frighten fry gather gaze glow glue grab+
greet grin+ guard guess guide hammer handle happen harm hate haunt heat help hike hop+ hope hover hug+ hunt hurry
identify ignore imagine impress improve include increase inform inquire inspect interrupt introduce invent invite itch
jog+ join joke judge juggle jump kick kiss kneel knit+ knock label land laugh launch learn level lick lift listen live
load lock look love manage march mark marry match measure melt memorise mend mention mind miss mix moan move multiply
murmur nail name need nod+ notice number obey object observe obtain offer open order owe own pack paddle paint park
pass paste pause peel perform persuade phone pick pinch place plan+ plant play please plough point polish post pour
practise pray prefer+ prepare present press pretend prevent print produce promise protect provide pull pump punch
punish push question queue race rain raise reach realise receive recognise record reduce refuse regret+ reject relax
release rely remain remember remind remove repair repeat replace reply report rescue return ring rinse risk roar roast
rob+ rock roll rub+ ruin rush sail satisfy save scare scatter scold scratch scream search seem serve settle shave
shelter shiver shock shop+ shout sigh sign signal skate ski skip+ slip+ smash smell smile smoke sneeze sniff snore
soak solve spark spell spill splash spoil spot+ squeak squeeze stain stamp stare start stay steer step+ stir+ stitch
stop+ store stretch study succeed suffer suggest supply support suppose surprise surround suspect switch tap+ taste
tease telephone tempt terrify thank tickle tie tip+ tire touch tour tow trace trade train trap+ travel treat tremble
trick trot+ trust try tug+ tumble turn twist type unite unlock unpack use vanish visit wait walk wander warm warn wash
waste watch water wave weigh welcome whisper whistle wink wipe wish wonder work worry wrap+ wreck yawn yell zip+ zoom
"""

IRREGULAR_VERBS = """
become/became begin/began bend/bent bite/bit blow/blew break/broke bring/brought build/built buy/bought catch/caught
choose/chose come/came dig/dug draw/drew drink/drank drive/drove eat/ate fall/fell feed/fed feel/felt fight/fought
find/found fly/flew forget/forgot forgive/forgave freeze/froze give/gave grow/grew hang/hung hear/heard hide/hid
hold/held keep/kept know/knew lay/laid lead/led leave/left lend/lent light/lit lose/lost make/made mean/meant meet/met
pay/paid ride/rode rise/rose run/ran say/said see/saw seek/sought sell/sold send/sent sew/sewed shake/shook
shine/shone shoot/shot show/showed shrink/shrank sing/sang sink/sank sit/sat sleep/slept slide/slid speak/spoke
spend/spent spin/spun stand/stood steal/stole stick/stuck strike/struck swear/swore sweep/swept swim/swam swing/swung
take/took teach/taught tear/tore tell/told think/thought throw/threw understand/understood wake/woke wear/wore
weave/wove win/won write/wrote
"""

ADJECTIVES = """
able absent active actual amazing ancient angry annual anxious available average awful awkward bare beautiful bitter
blank blind blue bold brave brief bright brilliant broad broken brown busy calm careful careless certain charming
cheap cheerful chilly civil clean clear clever clumsy cold comfortable common complete complex cool correct costly
crazy creamy crisp crowded cruel curious curly dangerous dark dear decent deep delicate delicious dense different
difficult dirty distant double dry dull dusty eager early easy elegant empty enormous entire equal exact excellent
expensive faint fair false familiar famous fancy fast fierce final fine firm fluffy foggy foolish foreign formal
fragile frequent fresh friendly frozen funny furious general generous gentle genuine glad golden graceful grand
grateful grey great greedy green grumpy handsome handy happy harsh healthy heavy helpful honest hollow huge humble
hungry icy ideal idle important impossible innocent jealous jolly joyful juicy keen kind large lazy legal level light
likely little lively local lonely long loose loud lovely loyal lucky magic major marvellous massive mean mellow merry
mighty mild minor modern modest moist muddy mysterious narrow nasty natural near neat necessary nervous new nice noble
noisy normal obvious odd old open ordinary original pale patient peaceful perfect plain playful pleasant polite poor
popular positive possible powerful precious pretty private probable proper proud public pure purple quaint quick quiet
rapid rare raw ready real regular rich ripe rotten rough round royal rude rusty safe salty scarce serious shallow
sharp shiny short shy sick silent silly similar simple single skinny sleepy slender slight slippery slow small smart
smooth soft solid sour special spicy splendid steady steep sticky stiff strange strict striped strong stubborn stupid
sturdy subtle sudden sunny sure sweet swift tall tame tasty tender terrible thick thin thirsty thorough tidy tight
tiny tired total tough tragic true typical ugly unusual upset urgent usual vague valuable vast violent visible vivid
warm weak wealthy weary weird wet whole wicked wide wild willing wise wonderful wooden worried worthy yellow young
"""

ADVERBS = """
again almost alone already always apart away back barely carefully certainly clearly daily downstairs easily elsewhere
enough even everywhere exactly far forever forward gladly gently happily hardly here indeed indoors instead just later
loudly maybe mostly much nearby nearly never northward nowhere often once only outdoors outside partly perhaps
politely properly quickly quietly quite rarely rather really recently sadly seldom sharply silently simply slowly
somehow sometimes soon steadily still suddenly surely together tomorrow tonight twice upstairs usually very warmly
weekly well westward yesterday yet
"""

NAMES = """
Adam Agnes Albert Alice Amber Andrew Anna Arthur Beatrice Benjamin Bridget Carl Catherine Charles Chloe Clara Daniel
David Deborah Dorothy Edward Eleanor Elizabeth Emma Eric Ethan Florence Frances Frederick George Gloria Grace Hannah
Harold Harriet Helen Henry Hugo Ian Irene Isaac Jacob James Jane Jasmine Jonathan Joseph Julia Karen Kenneth Laura
Leonard Lucy Margaret Maria Martin Matthew Michael Nathan Nicholas Nora Oliver Olivia Oscar Patricia Paul Peter Philip
Phoebe Rachel Ralph Rebecca Richard Robert Roger Ruth Samuel Sarah Sophie Stephen Susan Theodore Thomas Timothy Victor
Violet Walter William Zoe
"""

PLACES = """
Africa Amsterdam Asia Athens Australia Austria Belgium Berlin Boston Brazil Cairo California Canada Chicago Chile
China Copenhagen Cuba Denmark Dublin Edinburgh Egypt England Europe Finland Florence Florida France Geneva Germany
Greece Hawaii Holland Hungary Iceland India Ireland Israel Istanbul Italy Japan Kenya Lisbon London Madrid Mexico
Montreal Moscow Naples Norway Oslo Ottawa Oxford Paris Peru Poland Portugal Prague Rome Scotland Seattle Siberia Spain
Stockholm Sweden Sydney Texas Tokyo Toronto Vienna Wales Warsaw York Zurich
"""

NUMBERS = """
one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen twenty thirty forty fifty sixty seventy eighty ninety
"""

SMALL_WORDS = """
the a an of to and in that it is was for on are as with his they at be this from have or by had but what some we can
out other were all there when up use your how said she each which do their time if will way about many then them would
like so these her him has more could go than first been who its now did get may down over into through before after
under between against without because while although though until since both either neither nor every another such own
same few less most least our my me us you he I not no yes
"""
