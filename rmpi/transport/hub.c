/* The hub of an endpoint: what all its ports share. That is the endpoint's state and lock, what is known of arrays, and
   the lanes to all peers; so a port that is open to anybody sees at once who has come or gone, and costs little. */

#include "port.h"

PyObject *HubType;

/* Where the lane to a peer is among the lanes, or would be. */
static Py_ssize_t place_of(const Hub *hub, uint64_t peer)
{
    Py_ssize_t low = 0, high = hub->count;
    while (low < high) {
        Py_ssize_t middle = low + (high - low) / 2;
        if (hub->lanes[middle]->peer < peer) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

Lane *hub_lane(const Hub *hub, uint64_t peer)
{
    Py_ssize_t at = place_of(hub, peer);
    return at < hub->count && hub->lanes[at]->peer == peer ? hub->lanes[at] : NULL;
}

/* Have a place for one lane more. */
static bool grow(Hub *hub)
{
    if (hub->count < hub->room) {
        return true;
    }
    Py_ssize_t room = hub->room ? 2 * hub->room : 8;
    Lane **lanes = PyMem_Realloc(hub->lanes, (size_t)room * sizeof(Lane *));
    if (lanes == NULL) {
        PyErr_NoMemory();
        return false;
    }
    hub->lanes = lanes;
    hub->room = room;
    return true;
}

static PyObject *Hub_add(Hub *hub, PyObject *object)
{
    if (!Py_IS_TYPE(object, (PyTypeObject *)LaneType)) {
        return PyErr_Format(PyExc_TypeError, "a lane");
    }
    Lane *lane = (Lane *)object;
    Py_ssize_t at = place_of(hub, lane->peer);
    if (at < hub->count && hub->lanes[at]->peer == lane->peer) {
        hub->sockets += lane->socket - hub->lanes[at]->socket;
        replace((PyObject **)&hub->lanes[at], Py_NewRef(object));
        Py_RETURN_NONE;
    }
    if (!grow(hub)) {
        return NULL;
    }
    memmove(hub->lanes + at + 1, hub->lanes + at, (size_t)(hub->count - at) * sizeof(Lane *));
    hub->lanes[at] = (Lane *)Py_NewRef(object);
    hub->count++;
    hub->sockets += lane->socket;
    Py_RETURN_NONE;
}

static PyObject *Hub_remove(Hub *hub, PyObject *lane)
{
    for (Py_ssize_t at = 0; at < hub->count; at++) {
        if ((PyObject *)hub->lanes[at] == lane) {
            hub->count--;
            hub->sockets -= hub->lanes[at]->socket;
            memmove(hub->lanes + at, hub->lanes + at + 1, (size_t)(hub->count - at) * sizeof(Lane *));
            Py_DECREF(lane);
            break;
        }
    }
    Py_RETURN_NONE;
}

static PyObject *Hub_clear(Hub *hub, PyObject *Py_UNUSED(none))
{
    hub->sockets = 0;
    while (hub->count) {
        Py_DECREF((PyObject *)hub->lanes[--hub->count]);
    }
    Py_RETURN_NONE;
}

static void Hub_dealloc(Hub *hub)
{
    PyTypeObject *type = Py_TYPE((PyObject *)hub);
    PyObject_GC_UnTrack(hub);
    Py_DECREF(Hub_clear(hub, NULL));
    PyMem_Free(hub->lanes);
    for (int i = 0; i < DESCRIBED; i++) {
        Py_XDECREF(hub->described[i].dtype);
        Py_XDECREF(hub->described[i].metadata);
    }
    Py_XDECREF(hub->keep);
    Py_XDECREF(hub->options);
    Py_XDECREF(hub->buffer_callback);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(hub);
    Py_DECREF(type);
}

static int Hub_traverse(Hub *hub, visitproc visit, void *arg)
{
    Py_VISIT(hub->keep); /* a tuple, of which others break the cycle */
    Py_VISIT(hub->options);
    Py_VISIT((PyObject *)Py_TYPE((PyObject *)hub));
    return 0;
}

#define REFERENCES 13

static PyObject *Hub_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"broken",   "locked",    "acquire", "release", "threads",    "array_type",
                            "describe", "new_array", "dumps",   "loads",   "adopt_send", "adopt_receive",
                            "nothing",  "spin",      "yields",  "epoll",   NULL};
    double seconds;
    int yields, epoll;
    PyObject *o[REFERENCES];
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!OOOOOOOOOOOOdpi", names, &PyDict_Type, &o[0], &o[1], &o[2], &o[3],
                                     &o[4], &o[5], &o[6], &o[7], &o[8], &o[9], &o[10], &o[11], &o[12], &seconds,
                                     &yields, &epoll)) {
        return NULL;
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Hub *hub = (Hub *)allocate(type, 0);
    if (hub == NULL || (hub->keep = PyTuple_New(REFERENCES)) == NULL ||
        (hub->options = Py_BuildValue("{si}", "protocol", 5)) == NULL ||
        (hub->buffer_callback = PyUnicode_InternFromString("buffer_callback")) == NULL) {
        Py_XDECREF((PyObject *)hub);
        return NULL;
    }
    PyObject **fields[REFERENCES] = {&hub->broken,     &hub->locked,     &hub->acquire,       &hub->release,
                                     &hub->threads,    &hub->array_type, &hub->describe,      &hub->new_array,
                                     &hub->dumps,      &hub->loads,      &hub->adopt_send,    &hub->adopt_receive,
                                     &hub->nothing};
    for (int i = 0; i < REFERENCES; i++) {
        PyTuple_SetItem(hub->keep, i, Py_NewRef(o[i]));
        *fields[i] = o[i];
    }
    hub->most_spin = (long long)(seconds * 1e9);
    hub->yields = (char)yields;
    hub->epoll = epoll;
    return (PyObject *)hub;
}

static PyMethodDef hub_methods[] = {
    {"add", (PyCFunction)Hub_add, METH_O, NULL},
    {"remove", (PyCFunction)Hub_remove, METH_O, NULL},
    {"clear", (PyCFunction)Hub_clear, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot hub_slots[] = {
    {Py_tp_new, Hub_new},           {Py_tp_dealloc, Hub_dealloc}, {Py_tp_traverse, Hub_traverse},
    {Py_tp_methods, hub_methods},   {0, NULL},
};

static PyType_Spec hub_spec = {"rmpi.transport._ring.Hub", sizeof(Hub), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
                               hub_slots};

int hub_ready(void)
{
    HubType = PyType_FromSpec(&hub_spec);
    return HubType == NULL ? -1 : 0;
}
