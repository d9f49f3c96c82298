/* Ports: the short cut of small messages.

   A whole eager message that can be sent, or received, at this very moment needs nothing of what makes the endpoint
   large: no operation to wait for, no queue, no place in the matching order but the next. `send` and `recv` of a port
   do just that, in one call, and otherwise change nothing and say so; the caller then takes the long way, through the
   endpoint. So the endpoint's text stays the only truth about frames, matching and credit:

       send   False     it has no lane, no room, no credit, others wait before it, or the value is not plain
       recv   NOTHING   what comes next on the lane is not the message that was asked for, or nothing comes

   Why that is safe. A port never runs while the endpoint's state is being changed: it holds the GIL throughout and does
   nothing if somebody holds the endpoint's lock. Messages keep their order: a port sends only what goes straight into
   the ring, with nothing waiting before it, and receives only what lies next in the ring at the edge of a frame, if
   neither an earlier arrival nor an earlier receive fits. No Python code runs between looking at the endpoint's state
   and changing the ring; where a call runs some (pickling, making an array), it looks again.

   Nothing is lost. A signal handler may raise after `recv` has returned and before its caller has stored the value; the
   port remembers what it gave (`given`, `landed`) until the caller has it, and who catches the exception puts it back.

   Large messages take a flight (`flight.h`) from here: the port offers or grants, and the payload streams while both
   sides are in their calls. Where a flight stops on the way, the endpoint adopts it, the lock still held, and what is
   returned is its operation, for the caller to wait for. Adopting is Python, and a signal handler may raise in its
   first line: then it is called again, and the exception raised afterwards.

   Threads. Any may send by a port; only the one that made it receives by it, or has large messages fly. So what was
   received last is that thread's, and only it has to know. An *open* port belongs to whichever thread comes, as soon as
   the last one has said that it has what it was given.

   Open ports are those of boxes, which anybody may send to, and of routes there: a rank is the number of an endpoint
   then, and the lanes are those that the endpoint has at the moment (`hub.c`).

   Waiting. `recv` spins for a bounded time, shorter when that did not pay lately, and gives the processor away
   when ranks outnumber cores. It holds the GIL meanwhile, so where there are other threads it hardly waits at all. */

#include "port.h"

PyObject *PortType;

/* An int argument that surely fits; anything else is for the long way to judge. */
static bool plain_number(PyObject *object, long long *number)
{
    if (Py_TYPE(object) != &PyLong_Type) {
        return false;
    }
    int overflow;
    *number = PyLong_AsLongLongAndOverflow(object, &overflow);
    return !overflow;
}

static bool plain_fingerprint(PyObject *const *args, Py_ssize_t count, Py_ssize_t at, uint64_t *fingerprint)
{
    *fingerprint = 0;
    if (count <= at) {
        return true;
    }
    *fingerprint = PyLong_AsUnsignedLongLong(args[at]);
    return !PyErr_Occurred() || (PyErr_Clear(), false);
}

static PyObject *send_or_post(Port *port, PyObject *const *args, Py_ssize_t count, bool may_fly)
{
    Address to;
    if (count < 3) {
        return PyErr_Format(PyExc_TypeError, "(value, rank, tag, fingerprint=0)");
    }
    if (!plain_number(args[1], &to.rank) || !plain_number(args[2], &to.tag) || to.tag < 0 ||
        !plain_fingerprint(args, count, 3, &to.fingerprint)) {
        Py_RETURN_FALSE;
    }
    Lane *lane = lane_to(port, to.rank);
    if (lane == NULL || !lane->quick) {
        Py_RETURN_FALSE;
    }
    Encoded value;
    PyObject *result = NULL;
    Py_INCREF((PyObject *)lane); /* what pickles may do anything */
    enum verdict verdict = encode(port, args[0], &value);
    if (verdict == YES && value.length > EAGER_LIMIT && may_fly) {
        result = send_large(port, lane, to.tag, to.fingerprint, args[0], &value);
    } else if (verdict != FAILED) {
        result = PyBool_FromLong(verdict == YES && send_small(port, lane, to.tag, to.fingerprint, &value) == YES);
    }
    release(&value);
    Py_DECREF((PyObject *)lane);
    return result;
}

static PyObject *Port_send(Port *port, PyObject *const *args, Py_ssize_t count)
{
    return send_or_post(port, args, count, true);
}

static PyObject *Port_post(Port *port, PyObject *const *args, Py_ssize_t count)
{
    return send_or_post(port, args, count, false);
}

static void forget(Port *port)
{
    port->landed = 0;
    Py_CLEAR(port->given);
}

/* The value, or NULL, perhaps without an exception. */
static PyObject *next_value(Port *port, PyObject *const *args, Py_ssize_t count)
{
    Wanted wanted;
    forget(port);
    if (!plain_number(args[0], &wanted.from.rank) || !plain_number(args[1], &wanted.from.tag) ||
        wanted.from.rank < -1 || wanted.from.tag < -1 || !plain_fingerprint(args, count, 3, &wanted.from.fingerprint)) {
        return NULL;
    }
    if (prepare_out(port, args[2], &wanted) != YES) {
        return NULL;
    }
    PyObject *value = undisturbed(port) && is_next(port, &wanted.from) ? receive(port, &wanted) : NULL;
    release_out(&wanted);
    return value;
}

static PyObject *Port_recv(Port *port, PyObject *const *args, Py_ssize_t count)
{
    if (count < 3) {
        return PyErr_Format(PyExc_TypeError, "recv(rank, tag, out, fingerprint=0)");
    }
    if (port->arrivals == NULL || !is_ours(port)) {
        return Py_NewRef(port->hub->nothing);
    }
    char before = port->busy;
    port->busy = 1; /* Python code may run in here, and let other threads in */
    PyObject *value = next_value(port, args, count);
    port->busy = before;
    return value != NULL || PyErr_Occurred() ? value : Py_NewRef(port->hub->nothing);
}

/* ------------------------------------------------------------------------------------------------ both at once */

/* Board what is offered on a lane, if it is what was asked for; the lock is held. */
static bool board_next(Port *port, Lane *lane, Inbound *in, const struct flight *out, const Wanted *wanted)
{
    bool busy = out->lane == lane && out->left; /* the grant cannot go into the middle of a frame */
    if (busy || !is_open(lane) || lane_readable(lane, HEADER_SIZE) < HEADER_SIZE) {
        return false;
    }
    if (!expect(port, lane, in, wanted) || in->header.kind != OFFER) {
        return false;
    }
    uint64_t before = lane->in.mine;
    return make_room(port, in, wanted) == YES && lane->in.mine == before &&
           board(lane, &in->header, &in->flight) == YES;
}

/* Offer what goes out, and move both ways as far as it goes. Whether the offer was made. */
static bool fly_both_ways(Port *port, Lane *from, struct flight *out, Inbound *in, const Wanted *wanted)
{
    memset(in, 0, sizeof *in);
    in->flight.lane = from;
    while (!fly_on(port, out, &in->flight)) {
        if (in->flight.stage != AWAITED || !board_next(port, from, in, out, wanted)) {
            return false;
        }
    }
    return true;
}

/* Send and receive where what goes out is large. `got` is NULL if the receive has not begun. */
static enum verdict exchange_large(Port *port, Lane *to, Lane *from, PyObject *object, Encoded *value,
                                   const Wanted *wanted, PyObject **sent, PyObject **got)
{
    struct flight out;
    Inbound in;
    *sent = *got = NULL;
    if (!take_lock(port)) {
        return NO;
    }
    if (depart(port, to, wanted->from.tag, wanted->from.fingerprint, value, &out) != YES) {
        leave_lock(port);
        return NO;
    }
    fly_both_ways(port, from, &out, &in, wanted);
    if (in.flight.stage == FLIES) {
        PyObject *array = wanted->out != NULL ? wanted->out : in.metadata[0] == 'a' ? in.landing.object : NULL;
        *got = adopt_in(port, &in.flight, &in.header, in.metadata, array);
    }
    *sent = out.stage == LANDED
                ? Py_NewRef(Py_True)
                : adopt_out(port, &out, wanted->from.tag, wanted->from.fingerprint, origin(object, value));
    leave_lock(port);
    if (in.flight.stage == LANDED && !PyErr_Occurred()) {
        *got = disembark(port, &in, wanted->from.rank, wanted);
    }
    close_landing(&in.landing);
    return PyErr_Occurred() ? FAILED : YES;
}

static PyObject *pair_of(const Port *port, PyObject *sent, PyObject *got)
{
    if (got == NULL && !PyErr_Occurred()) {
        got = Py_NewRef(port->hub->nothing);
    }
    if (sent == NULL || got == NULL) {
        Py_XDECREF(sent);
        Py_XDECREF(got);
        return NULL;
    }
    return Py_BuildValue("(NN)", sent, got);
}

static PyObject *exchange(Port *port, Lane *to, PyObject *object, Encoded *value, Wanted *wanted)
{
    PyObject *sent = NULL, *got = NULL;
    Lane *from = lane_to(port, wanted->from.rank);
    bool next = undisturbed(port) && is_next(port, &wanted->from);
    if (value->length > EAGER_LIMIT && next && from != NULL && is_open(from) && port->hub->most_spin) {
        enum verdict verdict = exchange_large(port, to, from, object, value, wanted, &sent, &got);
        if (verdict != YES || got != NULL) {
            return verdict == NO ? pair_of(port, Py_NewRef(Py_False), NULL) : pair_of(port, sent, got);
        }
    } else {
        sent = PyBool_FromLong(send_small(port, to, wanted->from.tag, wanted->from.fingerprint, value) == YES);
    }
    if (sent != Py_False && next) { /* nobody waits for us, so we may wait */
        got = receive(port, wanted);
    }
    return pair_of(port, sent, got);
}

static PyObject *Port_exchange(Port *port, PyObject *const *args, Py_ssize_t count)
{
    long long rank;
    Wanted wanted;
    if (count != 6 || !plain_number(args[1], &rank) || !plain_number(args[2], &wanted.from.rank) ||
        !plain_number(args[3], &wanted.from.tag) || wanted.from.rank < 0 || wanted.from.tag < 0 ||
        !plain_fingerprint(args, count, 5, &wanted.from.fingerprint)) {
        return PyErr_Format(PyExc_TypeError, "exchange(value, to, source, tag, out, fingerprint)");
    }
    Lane *lane = lane_to(port, rank);
    if (port->open || !is_ours(port) || lane == NULL || !lane->quick) {
        return pair_of(port, Py_NewRef(Py_False), NULL);
    }
    forget(port);
    Encoded value;
    PyObject *pair = NULL;
    Py_INCREF((PyObject *)lane);
    enum verdict verdict = encode(port, args[0], &value);
    if (verdict == YES) {
        verdict = prepare_out(port, args[4], &wanted);
        if (verdict == YES) {
            pair = exchange(port, lane, args[0], &value, &wanted);
            release_out(&wanted);
        }
    }
    if (verdict == NO) {
        pair = pair_of(port, Py_NewRef(Py_False), NULL);
    }
    release(&value);
    Py_DECREF((PyObject *)lane);
    return pair;
}

/* ------------------------------------------------------------------------------------------------------ object */

static PyObject *Port_attach(Port *port, PyObject *lane)
{
    if (!Py_IS_TYPE(lane, (PyTypeObject *)LaneType)) {
        return PyErr_Format(PyExc_TypeError, "a lane");
    }
    for (Py_ssize_t rank = 0; rank < port->size; rank++) {
        if (port->members[rank] == ((Lane *)lane)->peer) {
            replace((PyObject **)&port->lanes[rank], Py_NewRef(lane));
        }
    }
    Py_RETURN_NONE;
}

static PyObject *Port_detach(Port *port, PyObject *lane)
{
    for (Py_ssize_t rank = 0; rank < port->size; rank++) {
        if ((PyObject *)port->lanes[rank] == lane) {
            replace((PyObject **)&port->lanes[rank], NULL);
        }
    }
    Py_RETURN_NONE;
}

/* A value that was received, a list of a pickle's parts, or an operation; to a caller who may not have got it. */
static PyObject *Port_get_given(Port *port, void *Py_UNUSED(closure))
{
    return Py_NewRef(port->given != NULL ? port->given : port->hub->nothing);
}

/* Whatever is assigned, the caller has what it was given. An assignment, because no handler can run after it and
   before the next call, as one can after a call. */
static int Port_set_given(Port *port, PyObject *Py_UNUSED(value), void *Py_UNUSED(closure))
{
    forget(port);
    return 0;
}

static void Port_dealloc(Port *port)
{
    PyTypeObject *type = Py_TYPE((PyObject *)port);
    PyObject_GC_UnTrack(port);
    for (Py_ssize_t rank = 0; port->lanes != NULL && rank < port->size; rank++) {
        Py_XDECREF((PyObject *)port->lanes[rank]);
    }
    PyMem_Free(port->lanes);
    PyMem_Free(port->members);
    Py_XDECREF((PyObject *)port->hub);
    Py_XDECREF(port->keep);
    Py_XDECREF(port->given);
    freefunc free_object = (freefunc)PyType_GetSlot(type, Py_tp_free);
    free_object(port);
    Py_DECREF(type);
}

static int Port_traverse(Port *port, visitproc visit, void *arg)
{
    Py_VISIT((PyObject *)port->hub);
    Py_VISIT(port->keep);
    Py_VISIT(port->given);
    Py_VISIT((PyObject *)Py_TYPE((PyObject *)port));
    return 0;
}

static int Port_clear(Port *port)
{
    Py_CLEAR(port->given); /* `keep` is a tuple, of which others break the cycle */
    return 0;
}

static int set_members(Port *port, PyObject *members)
{
    port->member_objects = members;
    port->size = PyTuple_Size(members);
    port->lanes = PyMem_Calloc((size_t)port->size + 1, sizeof(Lane *));
    port->members = PyMem_Calloc((size_t)port->size + 1, sizeof(uint64_t));
    if (port->lanes == NULL || port->members == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t rank = 0; rank < port->size; rank++) {
        port->members[rank] = PyLong_AsUnsignedLongLong(PyTuple_GetItem(members, rank));
    }
    return PyErr_Occurred() ? -1 : 0;
}

/* A table of this context's, or NULL for None. */
static int set_table(PyObject **table, PyObject *given)
{
    if (given != Py_None && !PyDict_Check(given)) {
        PyErr_SetString(PyExc_TypeError, "arrivals and receives are tables");
        return -1;
    }
    *table = given == Py_None ? NULL : given;
    return 0;
}

static PyObject *Port_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"hub", "context", "members", "arrivals", "receives", NULL};
    unsigned long long context;
    PyObject *hub, *members, *arrivals, *receives;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!KOOO", names, (PyTypeObject *)HubType, &hub, &context, &members,
                                     &arrivals, &receives)) {
        return NULL;
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Port *port = (Port *)allocate(type, 0);
    if (port == NULL) {
        return NULL;
    }
    port->hub = (Hub *)Py_NewRef(hub);
    port->keep = PyTuple_Pack(3, members, arrivals, receives);
    port->context = context;
    port->open = members == Py_None;
    port->thread = port->open ? 0 : PyThread_get_thread_ident();
    port->spin = port->hub->most_spin;
    if (port->keep == NULL || set_table(&port->arrivals, arrivals) || set_table(&port->receives, receives) ||
        (!port->open && set_members(port, members))) {
        Py_DECREF((PyObject *)port);
        return NULL;
    }
    return (PyObject *)port;
}

static PyMethodDef port_methods[] = {
    {"send", (PyCFunction)(void (*)(void))Port_send, METH_FASTCALL, NULL},
    {"post", (PyCFunction)(void (*)(void))Port_post, METH_FASTCALL, NULL},
    {"recv", (PyCFunction)(void (*)(void))Port_recv, METH_FASTCALL, NULL},
    {"exchange", (PyCFunction)(void (*)(void))Port_exchange, METH_FASTCALL, NULL},
    {"attach", (PyCFunction)Port_attach, METH_O, NULL},
    {"detach", (PyCFunction)Port_detach, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef port_members[] = {
    {"source", T_LONGLONG, offsetof(Port, source), READONLY, NULL},
    {"tag", T_LONGLONG, offsetof(Port, tag), READONLY, NULL},
    {"length", T_LONGLONG, offsetof(Port, length), READONLY, NULL},
    {"landed", T_BOOL, offsetof(Port, landed), READONLY, NULL},
    {"thread", T_ULONG, offsetof(Port, thread), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef port_getset[] = {
    {"given", (getter)Port_get_given, (setter)Port_set_given, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot port_slots[] = {
    {Py_tp_new, Port_new},         {Py_tp_dealloc, Port_dealloc}, {Py_tp_traverse, Port_traverse},
    {Py_tp_clear, Port_clear},     {Py_tp_methods, port_methods}, {Py_tp_members, port_members},
    {Py_tp_getset, port_getset},   {0, NULL},
};

static PyType_Spec port_spec = {"rmpi.transport._ring.Port", sizeof(Port), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
                                port_slots};

int port_ready(void)
{
    PortType = PyType_FromSpec(&port_spec);
    return PortType == NULL ? -1 : 0;
}
