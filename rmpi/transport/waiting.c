/* Waiting, as ports do: whether they may act at all, and how long they look before they say that they cannot. */

#include "port.h"

#define SHORTEST_SPIN 20000LL /* nanoseconds; what a wait costs at least before it is worth going to sleep */

/* So many lanes more, and one that is awaited is looked at that much oftener than the others. */
#define MANY 32

/* The same where threads or ranks share this processor with others. */
#define FEW_YIELDS 20

/* Whether this port's context is broken; that others are is not its business. */
static bool is_broken(const Port *port)
{
    if (PyDict_Size(port->hub->broken) == 0) {
        return false;
    }
    PyObject *context = PyLong_FromUnsignedLongLong(port->context);
    int found = context == NULL ? -1 : PyDict_Contains(port->hub->broken, context);
    Py_XDECREF(context);
    return found != 0 && (PyErr_Clear(), true);
}

bool undisturbed(const Port *port)
{
    if (is_broken(port)) {
        return false;
    }
    PyObject *locked = PyObject_CallNoArgs(port->hub->locked);
    Py_XDECREF(locked);
    return locked == Py_False || (PyErr_Clear(), false);
}

bool take_lock(const Port *port)
{
    if (is_broken(port)) {
        return false;
    }
    PyObject *taken = PyObject_CallFunctionObjArgs(port->hub->acquire, Py_False, NULL);
    Py_XDECREF(taken);
    return taken == Py_True || (PyErr_Clear(), false);
}

void leave_lock(const Port *port)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    Py_XDECREF(PyObject_CallNoArgs(port->hub->release));
    PyErr_Restore(type, value, trace);
}

bool is_ours(Port *port)
{
    unsigned long thread = PyThread_get_thread_ident();
    if (port->open && port->thread != thread && !port->busy && port->given == NULL && !port->landed) {
        port->thread = thread; /* whoever had it has all that it was given */
    }
    return port->thread == thread;
}

Lane *lane_to(const Port *port, long long rank)
{
    if (port->open) {
        return rank >= 0 ? hub_lane(port->hub, (uint64_t)rank) : NULL;
    }
    return rank >= 0 && rank < port->size ? port->lanes[rank] : NULL;
}

/* Whether a lane brings what only the long way answers, or has little room left. Whole messages may wait in it: they
   are not what is waited for here, and whoever sent them does not wait. */
static bool calls(Lane *lane)
{
    if (!lane_stirs(lane)) {
        return false;
    }
    if (lane->wants_room || !has_in(lane)) {
        return true; /* there is room; of a peer whose greeting has not come there is nothing to read yet */
    }
    uint64_t ready = ring_readable(&lane->in, 1);
    if (!lane->edge || lane->in.corrupt || lane->out.corrupt || ready > lane->in.capacity / 2) {
        return true;
    }
    unsigned char start[4]; /* the fourth byte of a header is its kind */
    if (ready < sizeof start) {
        return false;
    }
    ring_peek(&lane->in, 0, start, sizeof start);
    return start[3] != EAGER && start[3] != CREDITED;
}

/* To look at a socket costs a system call: one of them in turn. */
static bool next_socket_calls(Port *port, const Lane *awaited)
{
    for (Py_ssize_t i = 0, count = lane_count(port); i < count; i++) {
        port->glance = (port->glance + 1) % count;
        Lane *lane = lane_at(port, port->glance);
        if (lane != NULL && lane != awaited && lane->socket && has_in(lane)) {
            return lane_readable(lane, 1) > 0 && calls(lane);
        }
    }
    return false;
}

/* Whether any other lane has something to do, which only the long way does. */
static bool others_call(Port *port, const Lane *awaited)
{
    for (Py_ssize_t i = 0, count = lane_count(port); i < count; i++) {
        Lane *lane = lane_at(port, i);
        if (lane != NULL && lane != awaited && (calls(lane) || (lane->socket && has_unsent(lane)))) {
            return true;
        }
    }
    return awaited != NULL && (has_unsent(awaited) || next_socket_calls(port, awaited));
}

/* Nanoseconds that a wait may last. Other threads cannot run meanwhile. */
static long long patience(const Port *port)
{
    PyObject *answer = PyObject_CallNoArgs(port->hub->threads);
    long long threads = answer == NULL ? 1 : PyLong_AsLongLong(answer);
    Py_XDECREF(answer);
    PyErr_Clear();
    return threads == 0 || port->spin < SHORTEST_SPIN ? port->spin : SHORTEST_SPIN;
}

void learn(Port *port, bool paid)
{
    if (paid) {
        port->spin = port->hub->most_spin;
    } else if (port->spin > SHORTEST_SPIN) {
        port->spin = port->spin / 2 > SHORTEST_SPIN ? port->spin / 2 : SHORTEST_SPIN;
    }
}


/* One more look was in vain, and somebody else needs this processor. False: enough. */
static bool give_way(Port *port, const Lane *awaited, Wait *wait)
{
    sched_yield();
    wait->looks++;
    if (wait->looks % GLANCE == 0 && others_call(port, awaited)) {
        return false;
    }
    return wait->looks < MOST_YIELDS && (wait->looks != FEW_YIELDS || patience(port) > SHORTEST_SPIN);
}

/* Looks at one ring that the last look counts for. */
static unsigned long weight(const Port *port, const Lane *awaited)
{
    if (awaited != NULL) {
        return awaited->socket ? SOCKET_LOOK : 1;
    }
    return 1 + (unsigned long)lane_count(port) / GLANCE;
}

bool go_on(Port *port, const Lane *awaited, Wait *wait)
{
    if (port->hub->most_spin == 0) {
        return false;
    }
    if (port->hub->yields) {
        return give_way(port, awaited, wait);
    }
    relax();
    unsigned long before = wait->looks, glance = GLANCE * (1 + (unsigned long)lane_count(port) / MANY);
    wait->looks += weight(port, awaited);
    if (before / glance != wait->looks / glance && others_call(port, awaited)) {
        return false;
    }
    if (before / TICK == wait->looks / TICK) {
        return true;
    }
    long long now = nanoseconds();
    wait->until = wait->until ? wait->until : now + patience(port);
    if (now >= wait->until) {
        learn(port, false);
    }
    return now < wait->until;
}

bool await(Port *port, Lane *lane, uint64_t count)
{
    Wait wait = {0, 0};
    while (lane_readable(lane, count) < count) {
        if (is_over(lane) || !go_on(port, lane, &wait)) {
            return false;
        }
    }
    if (wait.until) {
        learn(port, true);
    }
    return true;
}

bool fly_on(Port *port, struct flight *out, struct flight *in)
{
    bool landed = fly_both(out, in, patience(port), port->hub->yields);
    learn(port, landed);
    return landed;
}
