/* What the parts of a port share: the port, and values on their way out and in. */

#ifndef RMPI_PORT_H
#define RMPI_PORT_H

#include "flight.h"

/* Buffers of one pickled value, itself included, that a port handles. */
#define MOST_SEGMENTS 8

/* Descriptions of arrays that a port remembers. */
#define DESCRIBED 64
#define MOST_DIMENSIONS 6

/* What a port can say of anything: not by the short cut; yes; an exception is set. */
enum verdict { NO = 0, YES = 1, FAILED = -1 };

typedef struct {
    PyObject *dtype; /* held, so that nobody else gets its address */
    PyObject *metadata;
    int dimensions;
    char order;
    Py_ssize_t shape[MOST_DIMENSIONS];
} Described;

/* What all ports of an endpoint share. */
typedef struct {
    PyObject_HEAD
    PyObject *keep;                       /* holds all of these: */
    PyObject *broken;                     /* the endpoint's contexts that are */
    PyObject *locked, *acquire, *release; /* its lock */
    PyObject *threads;                    /* how many other threads there are */
    PyObject *array_type, *describe, *new_array, *dumps, *loads;
    PyObject *options, *buffer_callback; /* of `dumps`: a dict, and the key that changes */
    PyObject *adopt_send, *adopt_receive; /* of the endpoint: go on with a flight that has stopped */
    PyObject *nothing;                    /* in place of a value: there is none */
    Described described[DESCRIBED];
    long long most_spin; /* nanoseconds */
    char yields;
    Lane **lanes; /* to all peers, in the order of their numbers; held */
    Py_ssize_t count, room, sockets;
    int epoll; /* the endpoint's; open as long as there are lanes */
} Hub;

typedef struct {
    PyObject_HEAD
    Hub *hub; /* held */
    uint64_t context;
    char open;            /* to anybody: a "rank" is the number of an endpoint, and all lanes of the hub are its own */
    unsigned long thread; /* that receives by it */
    char busy;            /* that thread is receiving */
    Py_ssize_t size;      /* of what is not open: */
    Lane **lanes;         /* by rank; NULL where there is none (yet) */
    uint64_t *members;
    PyObject *keep; /* holds all of these: */
    PyObject *member_objects;
    PyObject *arrivals, *receives; /* the endpoint's tables of this context; NULL if it is only sent to */
    long long spin;                /* nanoseconds */
    unsigned since;                /* messages received since the caller looked around */
    Py_ssize_t turn; /* where a receive from anybody begins to look */
    Py_ssize_t glance; /* the socket that was looked at last while another lane was awaited */
    /* what was received last: */
    long long source, tag, length;
    PyObject *given; /* see `Port_get_given` */
    char landed;     /* it is in the caller's array */
} Port;

/* A value on its way out. The pieces are its own memory, held by `views` and `kept`. */
typedef struct {
    unsigned char small[16];
    const void *metadata;
    Py_ssize_t metadata_size;
    Piece pieces[MOST_SEGMENTS];
    int count;
    uint64_t length;
    Py_buffer views[MOST_SEGMENTS];
    int held;
    PyObject *kept;                    /* of a pickle: a list of its parts */
    uint64_t sizes[MOST_SEGMENTS + 1]; /* the metadata of a pickle is its first byte's end and what follows */
} Encoded;

/* A value on its way in: an object that is complete as soon as its pieces are filled. */
typedef struct {
    PyObject *object; /* an array, bytes, or of a pickle the list of its parts */
    Piece pieces[MOST_SEGMENTS];
    int count;
    Py_buffer view;
    bool held;
} Landing;

/* How a value travels. NO: not by the short cut. Runs Python code for what is pickled and what is new. */
enum verdict encode(Port *port, PyObject *object, Encoded *value);
void release(Encoded *value);

/* The metadata of an array, borrowed; NULL without an exception if it is none for the short cut. Runs Python code only
   for what it has not seen lately. */
PyObject *metadata_of(Port *port, PyObject *array, const Py_buffer *view);

/* The value that lies in the metadata alone; NULL without an exception: it does not. */
PyObject *value_in(const unsigned char *metadata, uint32_t size, uint64_t length);

/* Memory for the value that `metadata` announces. NO: not by the short cut. Runs Python code for arrays. */
enum verdict open_landing(Port *port, const unsigned char *metadata, uint32_t size, uint64_t length, Landing *landing);
void close_landing(Landing *landing);

/* The value, from a landing that is full. NULL without an exception: text that is none. */
PyObject *landed_value(const Landing *landing, unsigned char code);

/* What a pickle's parts are; runs Python code. */
PyObject *unpickled(Port *port, PyObject *parts);

/* ------------------------------------------------------------------------------------------------ waiting.c */

/* Whether this thread receives by the port, and has large messages fly; of an open one, from now on. */
bool is_ours(Port *port);

/* Lanes that a port may receive from, in no order that means anything. */
static inline Py_ssize_t lane_count(const Port *port) { return port->open ? port->hub->count : port->size; }

/* NULL: there is none, yet or any more. */
static inline Lane *lane_at(const Port *port, Py_ssize_t i)
{
    return port->open ? port->hub->lanes[i] : port->lanes[i];
}

/* Whether nobody is changing the endpoint's state, and the context is not broken. */
bool undisturbed(const Port *port);

/* The endpoint's, without waiting. False: somebody has it, or the context is broken. */
bool take_lock(const Port *port);

void leave_lock(const Port *port);

/* NULL: there is none. */
Lane *hub_lane(const Hub *hub, uint64_t peer);
Lane *lane_to(const Port *port, long long rank);

typedef struct {
    unsigned long looks;
    long long until;
} Wait;

/* Whether it paid to wait: for how long to do so the next time. */
void learn(Port *port, bool paid);

/* One more look was in vain. False: enough. */
bool go_on(Port *port, const Lane *awaited, Wait *wait);

/* Wait until so many bytes are there. False: they did not come. */
bool await(Port *port, Lane *lane, uint64_t count);

/* `fly_both`, as long as this port waits. */
bool fly_on(Port *port, struct flight *out, struct flight *in);

/* ----------------------------------------------------------------------------------------------- adopting.c */

/* A flight that has stopped becomes an operation. NULL: a signal handler raised; the operation is `given`. */
PyObject *adopt_out(Port *port, const struct flight *out, int64_t tag, uint64_t fingerprint, PyObject *value);

/* `array` is where it lands, if it is one. */
PyObject *adopt_in(Port *port, const struct flight *in, const Header *header, const unsigned char *metadata,
                   PyObject *array);

/* ------------------------------------------------------------------------------------------------ sending.c */

typedef struct {
    long long rank, tag;
    uint64_t fingerprint;
} Address;

/* The whole message, now. */
enum verdict send_small(Port *port, Lane *lane, int64_t tag, uint64_t fingerprint, const Encoded *value);

/* Offer a large message; the lock is held. */
enum verdict depart(Port *port, Lane *lane, int64_t tag, uint64_t fingerprint, Encoded *value, struct flight *out);

/* What the endpoint makes the message of, if it must. */
PyObject *origin(PyObject *object, const Encoded *value);

/* True, False (not now), or the operation it became. */
PyObject *send_large(Port *port, Lane *lane, int64_t tag, uint64_t fingerprint, PyObject *object, Encoded *value);

/* ---------------------------------------------------------------------------------------------- receiving.c */

/* What was asked for, and where it shall go. */
typedef struct {
    Address from; /* -1: any */
    PyObject *out; /* NULL: a new value */
    Py_buffer view;
    PyObject *metadata; /* that fits `out` */
} Wanted;

/* A large message on its way in. */
typedef struct {
    struct flight flight;
    Header header;
    unsigned char metadata[MOST_METADATA];
    Landing landing; /* if there is no `out` */
    Piece piece;     /* if there is */
} Inbound;

/* NO: no array that can be received into from here. */
enum verdict prepare_out(Port *port, PyObject *out, Wanted *wanted);

void release_out(Wanted *wanted);

/* Whether no earlier arrival, and no earlier receive, has to do with this one. */
bool is_next(const Port *port, const Address *from);

/* Have memory for what is offered. Runs Python code. */
enum verdict make_room(Port *port, Inbound *in, const Wanted *wanted);

/* Take an offer and grant it; the lock is held. */
enum verdict board(Lane *lane, const Header *header, struct flight *in);

/* The value that has landed, and is given. Of a pickle its parts are, because they can be put back. */
PyObject *disembark(Port *port, const Inbound *in, long long rank, const Wanted *wanted);

/* Look at what comes next. Whether it is what was asked for. */
bool expect(Port *port, Lane *lane, Inbound *in, const Wanted *wanted);

/* The value, or the operation it became. NULL without an exception: not now. */
PyObject *receive(Port *port, const Wanted *wanted);

#endif
